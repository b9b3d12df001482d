/** What can be turned on all charts of a page at once. */

import { useRef, useState } from 'react';
import type { Unit, View } from './Chart.tsx';

export const WHOLE: View = { isLog: false, smoothing: 0, range: [null, null] };

export function ViewControls({ view, unit, onView }: { view: View; unit: Unit; onView: (view: View) => void }) {
  const [from, to] = view.range;
  const bounds = useRef<HTMLSpanElement>(null);
  const reset = () => {
    // The button goes; who came to it by keyboard stays here. Not into a field, for which a phone shows its keys.
    bounds.current?.focus();
    onView({ ...view, range: WHOLE.range });
  };
  return (
    <div className="view-controls">
      <label className="check">
        <input
          type="checkbox"
          checked={view.isLog}
          onChange={(event) => onView({ ...view, isLog: event.target.checked })}
        />
        Log scale
      </label>
      <label className="slider">
        Smoothing
        <input
          type="range"
          min={0}
          max={0.98}
          step={0.02}
          value={view.smoothing}
          onChange={(event) => onView({ ...view, smoothing: Number(event.target.value) })}
        />
        <output className="num">{view.smoothing.toFixed(2)}</output>
      </label>
      <span ref={bounds} className="bounds" role="group" tabIndex={-1} aria-label={`Which ${unit}s`}>
        <Bound
          label={`From ${unit}`}
          placeholder="first"
          value={from}
          isGood={(value) => to === null || value < to}
          onValue={(value) => onView({ ...view, range: [value, to] })}
        />
        –
        <Bound
          label={`To ${unit}`}
          placeholder="last"
          value={to}
          isGood={(value) => from === null || value > from}
          onValue={(value) => onView({ ...view, range: [from, value] })}
        />
      </span>
      {(from !== null || to !== null) && (
        <button type="button" className="quiet" onClick={reset}>
          Reset zoom
        </button>
      )}
    </div>
  );
}

interface BoundProps {
  readonly label: string;
  readonly placeholder: string;
  /** null: none. */
  readonly value: number | null;
  readonly isGood: (value: number) => boolean;
  readonly onValue: (value: number | null) => void;
}

/** A number that counts while it is typed, as soon as it makes sense. */
function Bound({ label, placeholder, value, isGood, onValue }: BoundProps) {
  const [typed, setTyped] = useState<string | null>(null);
  const isBad = typed !== null && typed !== '' && !isGood(Number(typed));
  const type = (text: string) => {
    setTyped(text);
    if (text === '') onValue(null);
    else if (isGood(Number(text))) onValue(Number(text));
  };
  return (
    <input
      type="number"
      min={0}
      aria-label={label}
      aria-invalid={isBad}
      placeholder={placeholder}
      value={typed ?? value ?? ''}
      onChange={(event) => type(event.target.value)}
      onBlur={() => setTyped(null)}
    />
  );
}
