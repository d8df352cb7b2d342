// diad serve: responses equal the library's results; invalid images and options have the right status and
// code.
import assert from 'node:assert/strict';
import sharp from 'sharp';
import { Diad } from '../../lib/index.js';
import type { DiadServer } from '../../lib/server/index.js';
import type { ReconstructAnswer, ScoreAnswer } from '../../lib/server/schemas.js';
import { bmp } from '../support/bmp.js';
import {
  besideDemoServer,
  closeTo,
  form,
  pngBomb,
  post,
  rawRequest,
  refused,
} from '../support/server-support.js';
import { example } from '../support/support.js';

describe('server: responses', () => {
  let server: DiadServer;
  let diad: Diad;
  besideDemoServer((both) => ({ server, diad } = both));

  it('/v1/score returns the results of diad.score, for a raw body or form', async () => {
    const palette = Array.from({ length: 256 }, (_, i) => [i, i, i] as const);
    const gray = bmp({
      width: 64,
      height: 48,
      bits: 8,
      palette,
      pixels: Array.from({ length: 64 * 48 }, (_, i) => (i * 7) % 256),
    });
    for (const [bytes, format] of [
      [await example('capsule-crack.jpg'), 'jpeg'],
      [await example('gravel-blob.webp'), 'webp'],
      [gray, 'bmp'],
    ] as const) {
      const expected = await diad.score(bytes, { seed: 3 });
      for (const body of [bytes, form(bytes)]) {
        const answer = await post(server, '/v1/score?seed=3&map=true', body);
        assert.equal(answer.status, 200);
        const { score, seed, map, model, image, timings, ...rest } = (await answer.json()) as ScoreAnswer;
        closeTo(score, expected.score);
        assert.equal(seed, 3);
        assert.equal(model.digest, diad.info.bundle.digest);
        assert.equal(image.format, format);
        assert.ok(timings.computeMs > 0 && timings.queueMs >= 0);
        const sent = Buffer.from(map!.data, 'base64');
        const values = new Float32Array(sent.buffer, sent.byteOffset, map!.width * map!.height);
        for (const [i, value] of values.entries()) closeTo(value, expected.map.data[i] ?? NaN);
        const { threshold, anomalous, normalizedScore } = expected;
        const verdict = threshold === undefined ? {} : { threshold, anomalous, normalizedScore };
        assert.deepEqual(rest, verdict);
      }
    }
  });

  it('uses the seed, and returns a map only with map=true', async () => {
    const bytes = await example('gear-good.png');
    const [one, two] = await Promise.all(
      [1, 2].map(
        async (seed) => (await (await post(server, `/v1/score?seed=${seed}`, bytes)).json()) as ScoreAnswer,
      ),
    );
    assert.notEqual(one!.score, two!.score);
    assert.equal(one!.map, undefined);
  });

  it('tile= and overlap= score in tiles like the library; regionThreshold= finds regions', async () => {
    const bytes = await example('circuit_board-missing_part.png');
    const tile = { size: 200, overlap: 40 };
    const expected = await diad.score(bytes, { tile });
    const threshold = expected.score / 2;
    const regions = expected.map.regions({ threshold, minArea: 10 });
    assert.ok(regions.length > 0);
    for (const body of [bytes, form(bytes)]) {
      const query = `tile=200&overlap=40&map=true&regionThreshold=${threshold}&minArea=10`;
      const answer = (await (await post(server, `/v1/score?${query}`, body)).json()) as ScoreAnswer;
      closeTo(answer.score, expected.score);
      assert.deepEqual([answer.map?.width, answer.map?.height], [expected.map.width, expected.map.height]);
      assert.deepEqual(
        answer.regions?.map(({ box }) => box),
        regions.map(({ box }) => box),
      );
      for (const [i, { peak, area, contour }] of (answer.regions ?? []).entries()) {
        closeTo(peak, regions[i]!.peak);
        assert.ok(Math.abs(area - regions[i]!.area) < 1);
        assert.ok(contour.length > 2 && contour.every((point) => point.length === 2));
      }
    }
    const plain = (await (await post(server, '/v1/score', bytes)).json()) as ScoreAnswer;
    assert.notEqual(plain.score, expected.score);
    assert.equal(plain.regions, undefined, 'the bundle is not calibrated for pixels');
    const png = await post(server, '/v1/score?tile=200', bytes, { accept: 'image/png' });
    assert.equal(png.headers.get('content-type'), 'image/png');
  });

  it('answers 400 to tiles that are too small or too many, and to an invalid overlap', async () => {
    const bytes = await example('gear-good.png'); // 256 x 256
    await refused(
      await post(server, '/v1/score?tile=8', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /tile must be >= 16/,
    );
    await refused(
      await post(server, '/v1/score?tile=16', bytes),
      400,
      'ERR_DIAD_INVALID_ARGUMENT',
      /at most 256 tiles .* needs 441/,
    );
    await refused(
      await post(server, '/v1/score?tile=64&overlap=40', bytes),
      400,
      'ERR_DIAD_INVALID_ARGUMENT',
      /0 to 32 for tile\.overlap/,
    );
    await refused(await post(server, '/v1/score?overlap=4', bytes), 400, 'ERR_HTTP_BAD_REQUEST', /tile=/);
    await refused(
      await post(server, '/v1/score?regionThreshold=high', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /regionThreshold must be number/,
    );
  });

  it('/v1/reconstruct returns the result of diad.reconstruct; PNG by Accept', async () => {
    const bytes = await example('capsule-crack.jpg');
    // Alone, like in the server: another batch would round differently.
    const reconstructed = await diad.reconstruct(bytes);
    const scored = await diad.score(bytes);
    const answer = (await (await post(server, '/v1/reconstruct', bytes)).json()) as ReconstructAnswer;
    assert.deepEqual(Buffer.from(answer.image, 'base64'), reconstructed.image);
    assert.deepEqual(
      [answer.width, answer.height, answer.score],
      [reconstructed.width, reconstructed.height, reconstructed.score],
    );
    for (const [route, expected] of [
      ['/v1/reconstruct', reconstructed.image],
      ['/v1/score', await scored.map.toHeatmap()],
    ] as const) {
      const png = await post(server, route, bytes, { accept: 'image/png' });
      assert.equal(png.headers.get('content-type'), 'image/png');
      assert.deepEqual(Buffer.from(await png.arrayBuffer()), expected);
    }
  });

  it('answers 400 to no body, a bad seed, an unknown option, a form without the file', async () => {
    const bytes = await example('gear-good.png');
    await refused(
      await post(server, '/v1/score', ''),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /Expected the bytes of an image/,
    );
    await refused(
      await post(server, '/v1/score?seed=-1', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /seed must be >= 0/,
    );
    await refused(
      await post(server, '/v1/score?seed=one', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /seed must be integer/,
    );
    await refused(
      await post(server, '/v1/score?color=1', bytes),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /additional properties/,
    );
    await refused(
      await post(server, '/v1/score', form(bytes, 'other')),
      400,
      'ERR_HTTP_BAD_REQUEST',
      /image/,
    );
    const text = new FormData();
    text.append('image', 'words');
    await refused(await post(server, '/v1/score', text), 413, 'ERR_HTTP_TOO_LARGE');
  });

  it('answers 400 to a truncated form, a missing boundary or a broken part', async () => {
    const sends: [string, string][] = [
      ['multipart/form-data', 'null'],
      ['multipart/form-data; boundary=b', '--b\r\n\x06\u0080--b--\r\n'],
      [
        'multipart/form-data; boundary=b',
        '--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nhalf',
      ],
    ];
    for (const [type, body] of sends) {
      for (const route of ['/v1/score', '/v1/reconstruct']) {
        await refused(
          await post(server, route, body, { 'content-type': type }),
          400,
          'ERR_HTTP_BAD_REQUEST',
          /form cannot be read/,
        );
      }
    }
  });

  it('answers 404 and 405, with the allowed methods', async () => {
    await refused(await fetch(`${server.url}/v3`), 404, 'ERR_HTTP_NOT_FOUND');
    const answer = await fetch(`${server.url}/v1/score`);
    assert.equal(answer.headers.get('allow'), 'POST');
    await refused(answer, 405, 'ERR_HTTP_METHOD_NOT_ALLOWED');
    const unusual = await rawRequest(server, '/v2', { 'content-type': 'text/x-question' }, 'PROPFIND');
    assert.equal(unusual.status, 405, unusual.body);
    await refused(await fetch(`${server.url}/..%2f..%2fpackage.json`), 404, 'ERR_HTTP_NOT_FOUND');
  });

  it('answers 406 when neither JSON nor PNG is accepted', async () => {
    const bytes = await example('gear-good.png');
    await refused(
      await post(server, '/v1/score', bytes, { accept: 'text/html' }),
      406,
      'ERR_HTTP_NOT_ACCEPTABLE',
    );
  });

  it('answers 413 to 10,000 x 10,000 pixels in a small file, before decoding them', async () => {
    const bomb = pngBomb(10_000, 10_000);
    assert.ok(bomb.length < 100_000);
    bomb.fill(0xff, bomb.indexOf('IDAT') + 4, bomb.indexOf('IEND') - 8); // no decodable pixel data
    await refused(await post(server, '/v1/score', bomb), 413, 'ERR_DIAD_IMAGE_TOO_LARGE', /10000 x 10000/);
  });

  it('answers 413 to an animation', async () => {
    const raw = { width: 8, height: 16, channels: 3, pageHeight: 8 } as const;
    const animation = await sharp(
      Uint8Array.from({ length: 8 * 16 * 3 }, (_, i) => (i < 8 * 8 * 3 ? 40 : 220)),
      { raw },
    )
      .gif()
      .toBuffer();
    await refused(
      await post(server, '/v1/score', animation),
      413,
      'ERR_DIAD_IMAGE_TOO_LARGE',
      /at most 1 page or frame but the GIF has/,
    );
  });

  it('answers 415 by the first bytes regardless of the declared type, 422 to a damaged image', async () => {
    const svg = '<svg xmlns="http://www.w3.org/2000/svg"/>';
    for (const type of ['image/png', 'image/bmp', 'image/svg+xml', 'application/json']) {
      const answer = await post(server, '/v1/score', svg, { 'content-type': type });
      await refused(answer, 415, 'ERR_HTTP_UNSUPPORTED_MEDIA_TYPE', /PNG, JPEG, WebP/);
    }
    const bytes = await example('gear-good.png');
    const named = await post(server, '/v1/score', bytes, { 'content-type': 'text/plain' });
    assert.equal(named.status, 200, 'an image is an image');
    await refused(
      await post(server, '/v1/score', bytes.subarray(0, bytes.length >> 1)),
      422,
      'ERR_DIAD_IMAGE_DECODE',
    );
    await refused(await post(server, '/v1/reconstruct', bytes.subarray(0, 40)), 422, 'ERR_DIAD_IMAGE_DECODE');
  });

  it('answers 200 or 4xx to mutated images, and still scores a good one', async () => {
    const bytes = await example('gear-good.png');
    const { score } = await diad.score(bytes);
    let state = 12345;
    const random = (below: number): number => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % below;
    const statuses = new Set<number>();
    for (let i = 0; i < 60; i++) {
      const mutant = Buffer.from(bytes);
      for (let flips = 1 + random(8); flips > 0; flips--) mutant[random(mutant.length)] = random(256);
      const answer = await post(server, '/v1/score', mutant.subarray(0, 1 + random(2 * mutant.length)));
      statuses.add(answer.status);
      assert.ok(
        answer.status === 200 || (answer.status >= 400 && answer.status < 500),
        String(answer.status),
      );
    }
    assert.ok(statuses.has(422));
    const clean = (await (await post(server, '/v1/score', bytes)).json()) as ScoreAnswer;
    closeTo(clean.score, score);
  });
});
