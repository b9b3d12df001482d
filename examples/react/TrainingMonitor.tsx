/** The WebSocket document's React component, on the hook: it comes back by itself, and `succeeded` stays. */

import { useTrainingJob } from "epochcast-stream/react";

export function TrainingMonitor({
  jobId,
  token,
}: {
  jobId: number;
  token?: string;
}) {
  const { status, progress, completed, errorMessage, connection } =
    useTrainingJob(jobId, { token });

  return (
    <div>
      <p>Status: {completed ? "completed" : (status ?? "connecting")}</p>
      <progress value={progress} max="1" />
      <p>{Math.round(progress * 100)}%</p>
      {errorMessage && <p role="alert">{errorMessage}</p>}
      {connection.phase === "waiting" && (
        <p>Connection lost; it comes back by itself.</p>
      )}
    </div>
  );
}
