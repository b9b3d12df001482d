/** The job's log: its tail, live; by level, searched, and as a file. */

import { useEffect, useMemo, useRef, useState } from 'react';
import { usePlatform } from '../app/platform.tsx';
import { save } from '../rest/Rest.ts';
import { type Level, type Log, type LogLine, MAX_LINES } from '../stream/index.ts';
import { clock, moment } from '../ui/format.ts';
import { useWindowed } from '../ui/useWindowed.ts';
import { Trouble } from '../ui/Notice.tsx';

const LEVELS: readonly Level[] = ['DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'];
const LINE_PX = 20;
const PAGE = 10_000;

export function LogPanel({
  jobId,
  lines,
  isPartial,
}: {
  jobId: number;
  lines: readonly LogLine[];
  isPartial: boolean;
}) {
  const { rest } = usePlatform();
  const [level, setLevel] = useState<Level>('DEBUG');
  const [search, setSearch] = useState('');
  const [follows, setFollows] = useState(true);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  const shown = useMemo(() => wanted(lines, level, search), [lines, level, search]);
  const { first, end } = useWindowed(box, box, shown.length, LINE_PX);

  useEffect(() => {
    if (follows && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown, follows]);

  const download = async () => {
    setBusy(true);
    setError(null);
    try {
      const parts: string[] = [];
      for (let after = '0'; ;) {
        const page = await rest.get<{ items: Log[]; next_after: string }>(
          `/training-jobs/${jobId}/logs?limit=${PAGE}&after=${after}`,
        );
        parts.push(...page.items.map((line) => `${line.timestamp} ${line.level} ${line.message}\n`));
        if (page.items.length < PAGE) break;
        after = page.next_after;
      }
      save(new Blob(parts, { type: 'text/plain' }), `job-${jobId}.log`);
    } catch (problem) {
      setError(problem as Error);
    } finally {
      setBusy(false);
    }
  };

  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current!;
    setFollows(scrollHeight - scrollTop - clientHeight < 2 * LINE_PX);
  };

  return (
    <section aria-labelledby="log-title">
      <div className="section-head">
        <h2 id="log-title">Log</h2>
        <div className="section-tools">
          <label>
            <span className="hidden">Least level</span>
            <select value={level} onChange={(event) => setLevel(event.target.value as Level)}>
              {LEVELS.map((one) => (
                <option key={one} value={one}>
                  {one === 'DEBUG' ? 'all levels' : `${one} and above`}
                </option>
              ))}
            </select>
          </label>
          <input
            type="search"
            aria-label="Search the log"
            placeholder="search"
            value={search}
            onChange={(event) => setSearch(event.target.value)}
          />
          <button type="button" className="quiet" disabled={busy} onClick={() => void download()}>
            {busy ? 'Reading …' : 'Download'}
          </button>
        </div>
      </div>
      <Trouble error={error} />
      <div ref={box} className="log" role="log" aria-live="off" aria-label="Log lines" tabIndex={0} onScroll={scrolled}>
        <div style={{ height: shown.length * LINE_PX }}>
          {shown.slice(first, end).map((line, at) => (
            <Line key={line.id} line={line} top={(first + at) * LINE_PX} />
          ))}
        </div>
        {shown.length === 0 && (
          <p className="waiting">{lines.length === 0 ? 'No line yet.' : 'No line is like that.'}</p>
        )}
      </div>
      <p className="hint soft">
        <span className="num">{shown.length}</span> {shown.length === 1 ? 'line' : 'lines'}
        {isPartial || lines.length >= MAX_LINES ? '; the download has all of them' : ''}
        {!follows && (
          <>
            {' '}
            ·{' '}
            <button type="button" className="link" onClick={() => setFollows(true)}>
              Follow the end
            </button>
          </>
        )}
      </p>
    </section>
  );
}

function Line({ line, top }: { line: LogLine; top: number }) {
  return (
    <div className={`line ${line.level}`} style={{ top }} title={line.message}>
      <time className="soft" dateTime={line.timestamp} title={moment(line.timestamp)}>
        {clock(line.timestamp)}
      </time>
      <span className="level">{line.level === 'INFO' ? '' : line.level}</span>
      <span className="text">{line.message}</span>
    </div>
  );
}

function wanted(lines: readonly LogLine[], level: Level, search: string): readonly LogLine[] {
  const least = LEVELS.indexOf(level);
  const text = search.toLowerCase();
  if (least === 0 && !text) return lines;
  return lines.filter((line) => LEVELS.indexOf(line.level) >= least && line.message.toLowerCase().includes(text));
}
