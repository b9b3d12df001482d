/** What can be turned on all charts of a page at once. */

import type { View } from './Chart.tsx';

export const WHOLE: View = { isLog: false, smoothing: 0, range: null };

export function ViewControls({ view, onView }: { view: View; onView: (view: View) => void }) {
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
      {view.range && (
        <button type="button" className="quiet" onClick={() => onView({ ...view, range: null })}>
          Reset zoom
        </button>
      )}
    </div>
  );
}
