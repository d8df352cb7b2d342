// An image of the gallery: input with heat map, reconstruction, verdict, timings.
import { useState } from 'preact/hooks';
import { HeatMap } from './heat-map.js';
import { RegionList, RegionOutlines } from './regions.js';
import type { Score } from './service.js';

export interface Entry {
  readonly id: number;
  readonly name: string;
  readonly image: Blob;
  /** Object URL of the image. */
  readonly url: string;
  readonly state: 'waiting' | 'done' | 'failed';
  readonly score?: Score;
  /** Object URL of the reconstruction. */
  readonly reconstruction?: string;
  readonly problem?: string;
}

const STAGES: readonly [string, string][] = [
  ['readMs', 'Read the file'],
  ['queueMs', 'Wait in the queue'],
  ['resizeMs', 'Resize'],
  ['encodeMs', 'Encode'],
  ['denoiseMs', 'Denoise'],
  ['decodeMs', 'Decode'],
  ['extractMs', 'Features'],
  ['mapMs', 'Map'],
];

function Verdict({ score }: { readonly score: Score }) {
  const { threshold, anomalous } = score;
  const scale = Math.max(score.score, 2 * (threshold ?? 0.5));
  const verdict = anomalous === undefined ? undefined : anomalous ? 'anomalous' : 'normal';
  return (
    <div class={`verdict ${verdict ?? 'unknown'}`}>
      <p class="score">
        <strong>{score.score.toFixed(3)}</strong> {verdict ?? 'score'}
      </p>
      <meter
        min={0}
        max={scale}
        value={score.score}
        {...(threshold === undefined ? {} : { high: threshold, optimum: 0 })}
        aria-label="Score"
      >
        {score.score.toFixed(3)}
      </meter>
      <p class="note">
        {threshold === undefined
          ? 'No threshold: the model is not calibrated.'
          : `Threshold ${threshold.toFixed(3)}`}
      </p>
    </div>
  );
}

function Times({ score }: { readonly score: Score }) {
  return (
    <details>
      <summary>Time per stage</summary>
      <table>
        <tbody>
          {STAGES.map(([key, label]) => (
            <tr key={key}>
              <th scope="row">{label}</th>
              <td>{(score.timings[key] ?? 0).toFixed(1)} ms</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}

export function ImageCard({ entry, remove }: { readonly entry: Entry; readonly remove: () => void }) {
  const [opacity, setOpacity] = useState(80);
  const [size, setSize] = useState<{ readonly width: number; readonly height: number }>();
  const { name, score, reconstruction, state, problem } = entry;
  const slider = `opacity-${entry.id}`;
  return (
    <li class="card" data-state={state}>
      <header>
        <h2>{name}</h2>
        <button type="button" onClick={remove} aria-label={`Remove ${name}`}>
          ✕
        </button>
      </header>
      <div class="figures">
        <figure>
          <div class="stack">
            <img
              src={entry.url}
              alt={`Input ${name}`}
              onLoad={({ currentTarget: { naturalWidth, naturalHeight } }) =>
                setSize({ width: naturalWidth, height: naturalHeight })
              }
            />
            {score !== undefined && <HeatMap score={score} opacity={opacity} />}
            {score?.regions !== undefined && size !== undefined && (
              <RegionOutlines regions={score.regions} size={size} />
            )}
          </div>
          <figcaption>Input with heat map</figcaption>
        </figure>
        <figure>
          <div class="stack">
            {reconstruction !== undefined && <img src={reconstruction} alt={`Reconstruction of ${name}`} />}
          </div>
          <figcaption>Reconstruction</figcaption>
        </figure>
      </div>
      {state === 'waiting' && <p class="note">Scoring…</p>}
      {state === 'failed' && <p class="problem">{problem}</p>}
      {score !== undefined && (
        <>
          <Verdict score={score} />
          <label for={slider} class="slider">
            Heat map
            <input
              id={slider}
              type="range"
              min="0"
              max="100"
              value={opacity}
              onInput={(event) => setOpacity(Number(event.currentTarget.value))}
            />
          </label>
          {score.regions !== undefined && <RegionList regions={score.regions} />}
          <Times score={score} />
        </>
      )}
    </li>
  );
}
