// The page at /: scores images from drop, paste, file choice or camera, two at a time, and shows them as a
// gallery.
import { render } from 'preact';
import { useCallback, useEffect, useRef, useState } from 'preact/hooks';
import { Camera } from './camera.js';
import { ImageCard, type Entry } from './image-card.js';
import { reconstruct, Refusal, score } from './service.js';

const AT_ONCE = 2;
const TOKEN_KEY = 'diad-token'; // kept while the tab is open

type Update = (id: number, change: Partial<Entry>) => void;

/** Runs tasks in order, AT_ONCE at a time. */
class Line {
  readonly #waiting: (() => Promise<void>)[] = [];
  #running = 0;

  add(task: () => Promise<void>): void {
    this.#waiting.push(task);
    this.#next();
  }

  #next(): void {
    const task = this.#running < AT_ONCE ? this.#waiting.shift() : undefined;
    if (task === undefined) return;
    this.#running++;
    void task().finally(() => {
      this.#running--;
      this.#next();
    });
  }
}

async function work(entry: Entry, token: string, update: Update, needToken: () => void): Promise<void> {
  try {
    const [scored, reconstructed] = await Promise.all([
      score(entry.image, token),
      reconstruct(entry.image, token),
    ]);
    update(entry.id, { state: 'done', score: scored, reconstruction: URL.createObjectURL(reconstructed) });
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) needToken();
    update(entry.id, { state: 'failed', problem: error instanceof Error ? error.message : String(error) });
  }
}

function TokenField({ token, change }: { readonly token: string; readonly change: (token: string) => void }) {
  return (
    <label class="token">
      The server requires a token
      <input
        type="password"
        autocomplete="off"
        value={token}
        onInput={(event) => change(event.currentTarget.value.trim())}
      />
    </label>
  );
}

/** Formats the progress for the live region. */
function progress(entries: readonly Entry[]): string {
  if (entries.length === 0) return '';
  const count = (state: Entry['state']): number => entries.filter((entry) => entry.state === state).length;
  const [waiting, done, failed] = [count('waiting'), count('done'), count('failed')];
  const anomalous = entries.filter((entry) => entry.score?.anomalous === true).length;
  const parts = [
    waiting === 0 ? `${done} scored` : `${done} of ${entries.length} scored`,
    ...(anomalous === 0 ? [] : [`${anomalous} anomalous`]),
    ...(failed === 0 ? [] : [`${failed} failed`]),
  ];
  return parts.join(', ');
}

function App() {
  const [entries, setEntries] = useState<readonly Entry[]>([]);
  const [camera, setCamera] = useState(false);
  const [dragged, setDragged] = useState(false);
  const [asksToken, setAsksToken] = useState(false);
  const [token, setToken] = useState(sessionStorage.getItem(TOKEN_KEY) ?? '');
  const current = useRef({ token, next: 0, line: new Line() });
  current.current.token = token;

  const update = useCallback<Update>((id, change) => {
    setEntries((all) => all.map((entry) => (entry.id === id ? { ...entry, ...change } : entry)));
  }, []);
  const add = useCallback((files: Iterable<File | Blob>) => {
    for (const image of files) {
      const id = current.current.next++;
      const name = image instanceof File && image.name !== '' ? image.name : `image ${id + 1}`;
      const entry: Entry = { id, name, image, url: URL.createObjectURL(image), state: 'waiting' };
      setEntries((all) => [entry, ...all]);
      current.current.line.add(() => work(entry, current.current.token, update, () => setAsksToken(true)));
    }
  }, []);
  const remove = (entry: Entry): void => {
    URL.revokeObjectURL(entry.url);
    if (entry.reconstruction !== undefined) URL.revokeObjectURL(entry.reconstruction);
    setEntries((all) => all.filter(({ id }) => id !== entry.id));
  };

  useEffect(() => {
    const over = (event: DragEvent): void => {
      event.preventDefault();
      setDragged(true);
    };
    const leave = (event: DragEvent): void => {
      if (event.relatedTarget === null) setDragged(false);
    };
    const drop = (event: DragEvent): void => {
      event.preventDefault();
      setDragged(false);
      add(event.dataTransfer?.files ?? []);
    };
    const paste = (event: ClipboardEvent): void => add(event.clipboardData?.files ?? []);
    document.addEventListener('dragover', over);
    document.addEventListener('dragleave', leave);
    document.addEventListener('drop', drop);
    document.addEventListener('paste', paste);
    return () => {
      document.removeEventListener('dragover', over);
      document.removeEventListener('dragleave', leave);
      document.removeEventListener('drop', drop);
      document.removeEventListener('paste', paste);
    };
  }, []);

  const keepToken = (value: string): void => {
    sessionStorage.setItem(TOKEN_KEY, value);
    setToken(value);
  };
  return (
    <main class={dragged ? 'dragged' : ''}>
      <h1>diad</h1>
      <p class="lead">Reconstructs a defect-free version of an image and shows where the two differ.</p>
      {asksToken && <TokenField token={token} change={keepToken} />}
      <div class="inputs">
        <label class="pick">
          <span>Drop or paste images, or choose files</span>
          <input
            type="file"
            multiple
            accept="image/png,image/jpeg,image/webp,image/tiff,image/avif,image/gif,image/bmp"
            onChange={(event) => {
              add(event.currentTarget.files ?? []);
              event.currentTarget.value = '';
            }}
          />
        </label>
        <button type="button" aria-expanded={camera} onClick={() => setCamera(!camera)}>
          Use the camera
        </button>
      </div>
      {camera && <Camera take={(image) => add([image])} close={() => setCamera(false)} />}
      <p role="status" class="progress">
        {progress(entries)}
      </p>
      <ul class="gallery">
        {entries.map((entry) => (
          <ImageCard key={entry.id} entry={entry} remove={() => remove(entry)} />
        ))}
      </ul>
    </main>
  );
}

render(<App />, document.getElementById('app')!);
