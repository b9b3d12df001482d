/** A button that downloads a file, says how far it is, and leaves off when it is pressed again. On another page the
 * download goes on. */

import { type ReactNode, useRef, useState } from 'react';
import { usePlatform } from '../app/platform.tsx';
import { percent } from './format.ts';

interface DownloadProps {
  readonly path: string;
  /** The file's name where the gateway gives it none. */
  readonly name: string;
  readonly className: string;
  /** What a screen reader says; without it, what the button shows. */
  readonly label?: string;
  /** Called with null when it begins. */
  readonly onError: (error: Error | null) => void;
  readonly children: ReactNode;
}

export function DownloadButton({ path, name, className, label, onError, children }: DownloadProps) {
  const { rest } = usePlatform();
  const [part, setPart] = useState<number | null>(null);
  const running = useRef<AbortController | null>(null);

  const start = () => {
    const controller = new AbortController();
    running.current = controller;
    onError(null);
    setPart(0);
    rest
      .download(path, name, controller.signal, setPart)
      .catch((error: Error) => {
        if (!controller.signal.aborted) onError(error);
      })
      .finally(() => setPart(null));
  };

  if (part === null)
    return (
      <button type="button" className={className} aria-label={label} onClick={start}>
        {children}
      </button>
    );
  return (
    <button
      type="button"
      className={className}
      aria-label={`Cancel the download of ${name}, ${percent(part)}`}
      onClick={() => running.current?.abort()}
    >
      Cancel · {percent(part)}
    </button>
  );
}
