// Colors of the heat map. Also used in the browser.

/** Color stops of the heat map from weak to strong: position, red, green, blue. */
const STOPS = [
  [0, 255, 230, 80],
  [0.35, 255, 170, 20],
  [0.7, 235, 40, 20],
  [1, 200, 0, 90],
] as const;

/** Returns the color of a strength 0..1 as [red, green, blue], 0..255. */
export function heatColor(strength: number): readonly [number, number, number] {
  const t = Math.min(1, Math.max(0, strength));
  const above = STOPS.findIndex(([position]) => position >= t);
  const [p1, r1, g1, b1] = STOPS[Math.max(above, 0)] ?? STOPS[0];
  const [p0, r0, g0, b0] = STOPS[Math.max(above - 1, 0)] ?? STOPS[0];
  const share = p1 === p0 ? 0 : (t - p0) / (p1 - p0);
  return [r0 + share * (r1 - r0), g0 + share * (g1 - g0), b0 + share * (b1 - b0)];
}

/**
 * Returns the opacity of a strength 0..1. Weak values stay transparent, so that the image remains visible.
 */
export function heatAlpha(strength: number): number {
  return Math.min(1, Math.max(0, strength) * 1.6) ** 1.5;
}
