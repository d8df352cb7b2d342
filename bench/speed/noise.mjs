/** Creates a seeded noise image, RGB8 [side, side, 3], for timing. */
export function noisePixels(side) {
  const pixels = new Uint8Array(side * side * 3);
  for (let i = 0, state = 1; i < pixels.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    pixels[i] = state >>> 24;
  }
  return pixels;
}
