// Defect regions: outlines over the image, and a list.
import type { Score } from './service.js';

type Regions = NonNullable<Score['regions']>;
type Ring = Regions[number]['contour'];

const closed = (ring: Ring): string => `M${ring.map((point) => point.join(' ')).join('L')}Z`;

/** @param size - displayed size of the image, pixels */
export function RegionOutlines({
  regions,
  size,
}: {
  readonly regions: Regions;
  readonly size: { readonly width: number; readonly height: number };
}) {
  return (
    <svg
      class="regions"
      viewBox={`0 0 ${size.width} ${size.height}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      {regions.map(({ box, contour, holes }) => (
        <g key={`${box.x},${box.y}`}>
          <path d={[contour, ...holes].map(closed).join('')} vector-effect="non-scaling-stroke" />
          <rect {...box} vector-effect="non-scaling-stroke" />
        </g>
      ))}
    </svg>
  );
}

export function RegionList({ regions }: { readonly regions: Regions }) {
  if (regions.length === 0) return <p class="note">No defect regions</p>;
  return (
    <details>
      <summary>{regions.length === 1 ? '1 defect region' : `${regions.length} defect regions`}</summary>
      <table>
        <tbody>
          {regions.map(({ box, peak }, i) => (
            <tr key={i}>
              <th scope="row">
                {box.width} × {box.height} pixels at {box.x}, {box.y}
              </th>
              <td>peak {peak.toFixed(3)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}
