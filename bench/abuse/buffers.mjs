// Input buffers that are overwritten, transferred or detached right after the call.
import { library, readTestImage, randomNumbers } from './harness.mjs';

export const abuse = 'input buffer mutated, transferred or detached right after the call';
export const mustHold =
  'the result of the original bytes; a buffer that is gone before the call is a DiadError';
export const amounts = { short: 24, full: 1000 };

export async function run(count) {
  const { Diad } = await library();
  const { default: sharp } = await import('sharp');
  const random = randomNumbers(5);
  const failures = [];
  const encoded = readTestImage();
  const { data, info } = await sharp(encoded).removeAlpha().raw().toBuffer({ resolveWithObject: true });
  const diad = await Diad.load();
  const expected = (await diad.score(encoded)).score;
  const forms = {
    bytes: () => Uint8Array.from(encoded),
    ArrayBuffer: () => Uint8Array.from(encoded).buffer,
    'raw frame': () => ({
      data: Uint8Array.from(data),
      width: info.width,
      height: info.height,
      channels: info.channels,
    }),
  };
  const buffer = (image) => (image instanceof ArrayBuffer ? image : (image.data?.buffer ?? image.buffer));
  const deeds = {
    overwritten: (image) => new Uint8Array(buffer(image)).fill(255 * random()),
    transferred: (image) => structuredClone(buffer(image), { transfer: [buffer(image)] }),
    detached: (image) =>
      buffer(image).transfer?.(0) ?? structuredClone(buffer(image), { transfer: [buffer(image)] }),
  };
  for (let i = 0; i < count; i++) {
    for (const [form, make] of Object.entries(forms)) {
      const [deed, act] = Object.entries(deeds)[i % 3];
      const image = make();
      const result = diad.score(image);
      act(image);
      const { score } = await result;
      if (score !== expected) failures.push(`${form} ${deed}: score ${score}, not ${expected}`);
    }
  }
  for (const [form, make] of Object.entries(forms)) {
    const image = make();
    structuredClone(buffer(image), { transfer: [buffer(image)] });
    const error = await diad.score(image).then(
      () => undefined,
      (reason) => reason,
    );
    if (!/^ERR_DIAD_(INVALID_ARGUMENT|IMAGE_DECODE)$/.test(error?.code))
      failures.push(`${form} detached before the call: ${String(error)}`);
  }
  await diad.close();
  return { measured: `${3 * count} calls, ${failures.length} bad`, failures };
}
