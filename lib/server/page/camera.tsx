// Captures an image from the webcam.
import { useEffect, useRef, useState } from 'preact/hooks';

export function Camera({
  take,
  close,
}: {
  readonly take: (image: Blob) => void;
  readonly close: () => void;
}) {
  const video = useRef<HTMLVideoElement>(null);
  const [problem, setProblem] = useState<string>();
  useEffect(() => {
    let stream: MediaStream | undefined;
    let gone = false;
    const stop = (): void => stream?.getTracks().forEach((track) => track.stop());
    const start = async (): Promise<void> => {
      if (navigator.mediaDevices === undefined)
        throw new Error('the page must be served from this machine or over TLS');
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
      if (gone) stop();
      else if (video.current !== null) video.current.srcObject = stream;
    };
    start().catch((error: unknown) =>
      setProblem(`No camera: ${error instanceof Error ? error.message : String(error)}`),
    );
    return () => {
      gone = true;
      stop();
    };
  }, []);
  const shoot = (): void => {
    const { videoWidth = 0, videoHeight = 0 } = video.current ?? {};
    if (video.current === null || videoWidth === 0) return;
    const canvas = Object.assign(document.createElement('canvas'), {
      width: videoWidth,
      height: videoHeight,
    });
    canvas.getContext('2d')?.drawImage(video.current, 0, 0);
    canvas.toBlob((blob) => {
      if (blob !== null) take(blob);
    }, 'image/png');
  };
  return (
    <section class="camera" aria-label="Camera">
      {problem === undefined ? (
        <video ref={video} autoPlay playsInline muted />
      ) : (
        <p class="problem">{problem}</p>
      )}
      <button type="button" onClick={shoot} disabled={problem !== undefined}>
        Take an image
      </button>
      <button type="button" onClick={close}>
        Close the camera
      </button>
    </section>
  );
}
