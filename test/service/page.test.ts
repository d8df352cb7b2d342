// The page at /, in headless Chromium.
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { AxeBuilder } from '@axe-core/playwright';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import type { Diad, ScoreResult } from '../../lib/index.js';
import type { DiadServer, Scorer } from '../../lib/server/index.js';
import { besideDemoServer, stubScorer, withServer } from '../support/server-support.js';
import { example, HANG_GUARD_MS, root } from '../support/support.js';

const screenshots = path.join(root, 'out', 'page');
const TOKEN = 'token-of-the-page-0123';

/** Opens a page and records foreign requests, errors and policy violations. */
async function open(
  browser: Browser,
  url: string,
  context: Parameters<Browser['newContext']>[0] = {},
): Promise<{ page: Page; context: BrowserContext; wrong: string[] }> {
  const opened = await browser.newContext(context);
  const page = await opened.newPage();
  const wrong: string[] = [];
  page.on('request', (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith('blob:')) wrong.push(request.url());
  });
  page.on('pageerror', (error) => wrong.push(error.message));
  page.on('console', (message) => {
    if (message.text().includes('Content Security Policy')) wrong.push(message.text());
  });
  await page.goto(url);
  return { page, context: opened, wrong };
}

/** Drops files on the page like a file manager. */
async function drop(page: Page, files: readonly { name: string; bytes: Buffer }[]): Promise<void> {
  const sent = files.map(({ name, bytes }) => ({ name, text: bytes.toString('base64') }));
  const transfer = await page.evaluateHandle((given) => {
    const dropped = new DataTransfer();
    for (const { name, text } of given) {
      dropped.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
    }
    return dropped;
  }, sent);
  await page.dispatchEvent('main', 'drop', { dataTransfer: transfer });
}

async function seriousViolations(page: Page): Promise<string[]> {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  return serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(' ')}`);
}

describe('page @slow', () => {
  let browser: Browser;
  before(async () => {
    await mkdir(screenshots, { recursive: true });
    const executablePath = process.env['DIAD_CHROMIUM'] ?? '/usr/bin/chromium';
    const camera = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'];
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox', ...camera] });
  });
  after(() => browser.close());

  describe('with the base bundle', () => {
    let server: DiadServer;
    let diad: Diad;
    besideDemoServer((both) => ({ server, diad } = both));

    it('shows scores, verdicts, maps and reconstructions of the library for dropped images', async () => {
      const files = [];
      const expected = new Map<string, ScoreResult>();
      for (const name of ['gear-good.png', 'gear-missing_part.png']) {
        const bytes = await example(name);
        files.push({ name, bytes });
        expected.set(name, await diad.score(bytes));
      }
      const { page, context, wrong } = await open(browser, server.url, {
        colorScheme: 'light',
        viewport: { width: 1100, height: 900 },
      });
      await drop(page, files);
      await page
        .getByRole('status')
        .filter({ hasText: /(?<!of )2 scored/ })
        .waitFor({ timeout: HANG_GUARD_MS });
      for (const [name, { score, anomalous }] of expected) {
        const card = page.getByRole('listitem').filter({ has: page.getByRole('heading', { name }) });
        const shown = await card.locator('.score').innerText();
        const verdict = anomalous === undefined ? 'score' : anomalous ? 'anomalous' : 'normal';
        const [number, word] = shown.split(' ');
        assert.ok(Math.abs(Number(number) - score) < 2e-3, `${shown} is not ${score}`);
        assert.equal(word, verdict);
        assert.equal(
          await card
            .getByRole('img', { name: `Reconstruction of ${name}` })
            .evaluate((image: HTMLImageElement) => image.naturalWidth),
          diad.info.bundle.imageSize,
        );
        // The heat map is drawn if some pixel is visible.
        const visible = await card.locator('canvas').evaluate((canvas: HTMLCanvasElement) => {
          const pixels = canvas.getContext('2d')!.getImageData(0, 0, canvas.width, canvas.height).data;
          return pixels.filter((_, i) => i % 4 === 3 && pixels[i]! > 0).length;
        });
        assert.ok(visible > 100, `${visible} visible pixels`);
      }
      const first = page.getByRole('listitem').first();
      await first.getByText('Time per stage').click();
      assert.match(await first.getByRole('row', { name: /Denoise/ }).innerText(), /\d\.\d ms/);
      await page.screenshot({ path: path.join(screenshots, 'light.png') });
      assert.deepEqual(await seriousViolations(page), []);
      await page.emulateMedia({ colorScheme: 'dark' });
      await page.screenshot({ path: path.join(screenshots, 'dark.png') });
      assert.deepEqual(await seriousViolations(page), []);
      await page.setViewportSize({ width: 360, height: 740 });
      const wider = await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
      );
      assert.equal(wider, 0, 'no sideways scrolling on a phone');
      await page.screenshot({ path: path.join(screenshots, 'phone.png') });
      assert.deepEqual(wrong, []);
      await context.close();
    });
  });

  describe('with a stub', () => {
    const threshold = 50_000; // the stub's score is the number of bytes
    const withStub = async (
      options: Parameters<typeof withServer>[0],
      use: (url: string) => Promise<void>,
    ): Promise<void> => {
      const stub = stubScorer();
      const contour = [[20, 30], [60, 30], [60, 90], [20, 90]]; // prettier-ignore
      const regions = (): unknown => [
        { box: { x: 20, y: 30, width: 40, height: 60 }, area: 2400, peak: 1.5, contour, holes: [] },
      ];
      const map = {
        width: 2,
        height: 1,
        data: Float32Array.of(0, 4 * threshold),
        pixelThreshold: 1,
        regions,
      } as unknown as ScoreResult['map'];
      const load = (): Promise<Scorer> =>
        Promise.resolve({
          ...stub,
          score: async (image, call) => {
            const result = await stub.score(image, call);
            return { ...result, map, threshold, anomalous: result.score > threshold };
          },
          reconstruct: async (image) => {
            const { timings } = await stub.score(image);
            return { image: Buffer.from(image as Uint8Array), timings, batchSize: 1 } as Awaited<
              ReturnType<Scorer['reconstruct']>
            >;
          },
        });
      await withServer({ load, ...options }, ({ url }) => use(url));
    };

    it('can be used by keyboard: pick, slider, details, remove; shows the verdict', () =>
      withStub({}, async (url) => {
        const { page, context, wrong } = await open(browser, url);
        const [small, large] = [await example('gravel-blob.webp'), await example('grass-thread.png')];
        assert.ok(small.length < threshold && large.length > threshold);
        await page.locator('input[type=file]').waitFor({ state: 'attached' });
        const chooser = page.waitForEvent('filechooser');
        await page.keyboard.press('Tab');
        // The file-chooser request and the key reach the browser separately: wait for both before the next
        // key.
        await page.locator('input[type=file]:focus').waitFor({ state: 'attached' });
        await page.evaluate(() => new Promise(requestAnimationFrame));
        await page.keyboard.press('Enter');
        await (
          await chooser
        ).setFiles([
          { name: 'small.webp', mimeType: 'image/webp', buffer: small },
          { name: 'large.png', mimeType: 'image/png', buffer: large },
        ]);
        await page
          .getByRole('status')
          .filter({ hasText: /(?<!of )2 scored, 1 anomalous/ })
          .waitFor();
        assert.match(await page.getByRole('listitem').nth(0).innerText(), /anomalous[\s\S]*Threshold 50000/);
        assert.match(await page.getByRole('listitem').nth(1).innerText(), /normal/);
        const card = page.getByRole('listitem').nth(0);
        // The region must match the image pixels.
        const [shown, outlined] = await Promise.all(
          [card.getByRole('img', { name: /^Input/ }), card.locator('.regions rect')].map((found) =>
            found.evaluate(
              (element) =>
                element.getBoundingClientRect().toJSON() as {
                  x: number;
                  y: number;
                  width: number;
                  height: number;
                },
            ),
          ),
        );
        const side = await card
          .getByRole('img', { name: /^Input/ })
          .evaluate((image: HTMLImageElement) => image.naturalWidth);
        assert.ok(
          Math.abs((outlined!.x - shown!.x) / shown!.width - 20 / side) < 0.02,
          JSON.stringify([shown, outlined, side]),
        );
        assert.ok(
          Math.abs(outlined!.width / shown!.width - 40 / side) < 0.02,
          JSON.stringify([shown, outlined, side]),
        );
        await card.getByText('1 defect region').click();
        assert.match(
          await card.getByRole('row', { name: /40 × 60 pixels at 20, 30/ }).innerText(),
          /peak 1\.500/,
        );
        await card.getByText('1 defect region').click();
        await page.screenshot({ path: path.join(screenshots, 'regions.png') });
        const opacity = (): Promise<string> =>
          card.locator('canvas').evaluate((canvas) => getComputedStyle(canvas).opacity);
        assert.equal(await opacity(), '0.8');
        await card.getByRole('slider').focus();
        await page.keyboard.press('Home');
        // The page redraws after the key.
        for (let wait = 0; wait < 100 && (await opacity()) !== '0'; wait++) await page.waitForTimeout(50);
        assert.equal(await opacity(), '0');
        await page.keyboard.press('Tab'); // the list of regions
        await page.keyboard.press('Tab');
        await page.keyboard.press('Enter');
        assert.ok(await card.getByRole('row', { name: /Wait in the queue/ }).isVisible());
        await card.getByRole('button', { name: 'Remove large.png' }).focus();
        await page.keyboard.press('Enter');
        assert.equal(await page.getByRole('listitem').count(), 1);
        assert.deepEqual(wrong, []);
        await context.close();
      }));

    it('accepts images by paste and camera, and reports a file that is not an image', () =>
      withStub({}, async (url) => {
        const { page, context, wrong } = await open(browser, url, { permissions: ['camera'] });
        await page.evaluate(
          (text) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(
              new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], 'pasted.png'),
            );
            document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }));
          },
          (await example('gear-good.png')).toString('base64'),
        );
        await page
          .getByRole('status')
          .filter({ hasText: /(?<!of )1 scored/ })
          .waitFor();
        await page.getByRole('button', { name: 'Use the camera' }).click();
        await page.waitForFunction(() => (document.querySelector('video')?.videoWidth ?? 0) > 0);
        await page.getByRole('button', { name: 'Take an image' }).click();
        await page
          .getByRole('status')
          .filter({ hasText: /(?<!of )2 scored/ })
          .waitFor();
        await page.getByRole('button', { name: 'Close the camera' }).click();
        await drop(page, [{ name: 'notes.txt', bytes: Buffer.from('words') }]);
        await page.locator('.problem').filter({ hasText: 'Expected PNG, JPEG' }).waitFor();
        assert.deepEqual(wrong, []);
        await context.close();
      }));

    it('asks for a token when the server requires one', () =>
      withStub({ tokens: [TOKEN] }, async (url) => {
        const { page, context } = await open(browser, url);
        await drop(page, [{ name: 'first.png', bytes: await example('gear-good.png') }]);
        await page.getByLabel('The server requires a token').fill(TOKEN);
        await drop(page, [{ name: 'second.png', bytes: await example('gear-good.png') }]);
        await page.locator('.card[data-state=done] h2', { hasText: 'second.png' }).waitFor();
        assert.deepEqual(await seriousViolations(page), []);
        await context.close();
      }));
  });
});
