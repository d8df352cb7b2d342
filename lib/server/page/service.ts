// Requests to the server of the page.

/** The parts of a /v1/score response that the page shows. */
export interface Score {
  readonly score: number;
  readonly threshold?: number;
  readonly anomalous?: boolean;
  readonly timings: Readonly<Record<string, number>>;
  readonly image: { readonly width: number; readonly height: number };
  /** In pixels of the displayed image. */
  readonly regions?: readonly {
    readonly box: { readonly x: number; readonly y: number; readonly width: number; readonly height: number };
    readonly peak: number;
    readonly contour: readonly (readonly [number, number])[];
    readonly holes: readonly (readonly (readonly [number, number])[])[];
  }[];
  readonly map?: { readonly width: number; readonly height: number; readonly data: string };
}

/** An error response of the server. */
export class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const PATIENCE = 5;
const sleep = (seconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** Posts an image. Retries a few times when the server is busy. */
async function post(route: string, image: Blob, accept: string, token: string): Promise<Response> {
  const headers = {
    accept,
    'content-type': 'application/octet-stream',
    ...(token === '' ? {} : { authorization: `Bearer ${token}` }),
  };
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(route, { method: 'POST', body: image, headers });
    if (answer.ok) return answer;
    const problem = (await answer.json().catch(() => ({}))) as { detail?: string };
    const busy = answer.status === 503 || answer.status === 429;
    if (!busy || attempt === PATIENCE) throw new Refusal(answer.status, problem.detail ?? answer.statusText);
    await sleep(Math.min(30, Number(answer.headers.get('retry-after') ?? 1)));
  }
}

/** Requests score, verdict and map. */
export async function score(image: Blob, token: string): Promise<Score> {
  return (await (await post('/v1/score?map=true', image, 'application/json', token)).json()) as Score;
}

/** Requests the reconstruction as PNG. */
export async function reconstruct(image: Blob, token: string): Promise<Blob> {
  return (await post('/v1/reconstruct', image, 'image/png', token)).blob();
}
