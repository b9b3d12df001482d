/** Jobs as the gateway would answer them, for the tests. */

import type { Job, Spec } from '../src/rest/types.ts';

export const SPEC: Spec = {
  name: 'digits',
  recipe: 'image-classifier',
  hyperparameters: { lr: 0.01, width: 32 },
  bundle: null,
  entrypoint: null,
  args: [],
  env: {},
  total_epochs: 20,
  seed: 0,
  threads: null,
  resources: { gpus: 0, gpu_memory_gib: null, nodes: 1, procs_per_node: null },
  priority: 0,
  max_restarts: 0,
  max_runtime_s: null,
  stall_timeout_s: null,
  fail_on_non_finite: false,
  on_oom: 'fail',
  tags: ['demo'],
};

export function job(job_id: number, more: Partial<Job> = {}): Job {
  return {
    job_id,
    name: `job-${job_id}`,
    owner: 'alice',
    status: 'running',
    progress: 0.5,
    current_epoch: 5,
    total_epochs: 10,
    current_loss: 0.5,
    metrics: {},
    eta_s: 3,
    queue_position: null,
    pending_reason: null,
    expected_start_at: null,
    stop_requested: false,
    attempt: 1,
    generation: 2,
    model_id: null,
    final_metrics: null,
    error_message: null,
    error: null,
    spec: SPEC,
    hosts: [{ name: 'gpu-3', gpus: [0] }],
    last_event_id: '2-5',
    created_at: '2026-11-24T10:00:00Z',
    started_at: null,
    finished_at: null,
    timestamp: '2026-11-24T10:00:00Z',
    ...more,
  };
}
