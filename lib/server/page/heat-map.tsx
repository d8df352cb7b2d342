// The anomaly map as a canvas over the image.
import { useEffect, useRef } from 'preact/hooks';
import { heatAlpha, heatColor } from '../../scoring/heat-color.js';
import type { Score } from './service.js';

/** Decodes base64 to little-endian floats. */
export function decodeMap(text: string): Float32Array {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 2 }, (_, i) => view.getFloat32(4 * i, true));
}

/**
 * Renders a heat map. The strongest color is at twice the threshold (or 1), never at the maximum of the
 * image.
 */
export function heatPixels(
  values: Float32Array,
  width: number,
  height: number,
  threshold: number | undefined,
): ImageData {
  const pixels = new ImageData(width, height);
  const max = threshold === undefined || threshold <= 0 ? 1 : 2 * threshold;
  for (const [i, value] of values.entries()) {
    const strength = Math.min(1, Math.max(0, value / max));
    pixels.data.set([...heatColor(strength), 255 * heatAlpha(strength)], 4 * i);
  }
  return pixels;
}

export function HeatMap({ score, opacity }: { readonly score: Score; readonly opacity: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { map, threshold } = score;
  useEffect(() => {
    if (map === undefined) return;
    canvas.current
      ?.getContext('2d')
      ?.putImageData(heatPixels(decodeMap(map.data), map.width, map.height, threshold), 0, 0);
  }, [map, threshold]);
  useEffect(() => {
    if (canvas.current !== null) canvas.current.style.opacity = String(opacity / 100);
  }, [opacity]);
  return (
    <canvas ref={canvas} class="heat" width={map?.width ?? 1} height={map?.height ?? 1} aria-hidden="true" />
  );
}
