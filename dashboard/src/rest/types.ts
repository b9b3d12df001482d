/** What the gateway answers, as docs/http-api.md describes it; tests/dashboard/test_types.py compares it with OpenAPI. */

import type { JobError, Metrics, Snapshot } from '../stream/index.ts';

export interface Resources {
  readonly gpus: number;
  readonly gpu_memory_gib: number | null;
  readonly nodes: number;
  readonly procs_per_node: number | null;
}

export interface Spec {
  readonly name: string | null;
  readonly recipe: string | null;
  readonly hyperparameters: Readonly<Record<string, unknown>>;
  readonly bundle: string | null;
  readonly entrypoint: string | null;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly total_epochs: number | null;
  readonly seed: number;
  readonly threads: number | null;
  readonly resources: Resources;
  readonly priority: number;
  readonly max_restarts: number;
  readonly max_runtime_s: number | null;
  readonly stall_timeout_s: number | null;
  readonly fail_on_non_finite: boolean;
  readonly on_oom: string;
  readonly tags: readonly string[];
}

export interface Placement {
  readonly name: string;
  readonly gpus: readonly number[];
}

export interface Job extends Snapshot {
  readonly name: string;
  readonly owner: string;
  readonly queue_position: number | null;
  readonly pending_reason: string | null;
  readonly expected_start_at: string | null;
  readonly generation: number;
  readonly spec: Spec;
  readonly hosts: readonly Placement[];
  readonly created_at: string;
  readonly started_at: string | null;
  readonly finished_at: string | null;
}

export interface Page<Item> {
  readonly items: readonly Item[];
  readonly next_cursor: string | null;
}

export interface Items<Item> {
  readonly items: readonly Item[];
}

/** By column: `epoch`, and one for each metric. */
export type History = Readonly<Record<string, readonly (number | null)[]>>;

export interface Attempt {
  readonly number: number;
  readonly generation: number;
  readonly host: string;
  readonly gpus: readonly number[];
  readonly outcome: string | null;
  readonly reason: string | null;
  readonly error: JobError | null;
  readonly resumed_epoch: number | null;
  readonly members: readonly unknown[];
  readonly started_at: string;
  readonly ended_at: string | null;
}

export interface Artifact {
  readonly artifact_id: number;
  readonly kind: string;
  readonly attempt: number;
  readonly epoch: number | null;
  readonly step: number | null;
  readonly bytes: number;
  readonly sha256: string;
  readonly loss: number | null;
  readonly created_at: string;
}

export interface Model {
  readonly model_id: number;
  readonly job_id: number;
  readonly name: string;
  readonly owner: string;
  readonly metrics: Metrics;
  readonly lineage: Readonly<Record<string, unknown>>;
  readonly bytes: number;
  readonly sha256: string;
  readonly created_at: string;
}

export interface Memory {
  readonly total_gib: number;
  readonly used_gib: number;
}

export interface Slots {
  readonly total: number;
  readonly used: number;
}

export interface Cpu {
  readonly cores: number;
  readonly percent: number | null;
}

export interface Gpu {
  readonly index: number;
  readonly uuid: string;
  readonly name: string;
  readonly memory: Memory;
  readonly utilisation_percent: number | null;
  readonly job_id: number | null;
  /** Processes on it that are not ours. */
  readonly users: readonly { readonly pid: number; readonly used_bytes: number | null }[];
  readonly quarantined: boolean;
}

export interface Training {
  readonly job_id: number;
  readonly reported_at: string | null;
  readonly silent_s: number;
  readonly is_stalled: boolean;
}

export interface Host {
  readonly name: string;
  readonly status: 'ready' | 'draining' | 'unreachable';
  readonly slots: Slots;
  readonly cpu: Cpu;
  readonly memory: Memory;
  readonly gpus: readonly Gpu[];
  readonly jobs: readonly number[];
  readonly training: readonly Training[];
  readonly versions: Readonly<Record<string, string>>;
  readonly registered_at: string | null;
  readonly heartbeat_at: string | null;
  readonly heartbeat_age_s: number | null;
}

export interface Recipe {
  readonly name: string;
  readonly title: string;
  readonly description: string;
  readonly default_epochs: number;
  readonly hyperparameters: Schema;
}

/** The part of JSON Schema that recipes use. */
export interface Schema {
  readonly title?: string;
  readonly description?: string;
  readonly type?: string;
  readonly default?: unknown;
  readonly enum?: readonly string[];
  readonly anyOf?: readonly Schema[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
  readonly properties?: Readonly<Record<string, Schema>>;
}

/** What a dry run answers. */
export interface Plan {
  readonly spec: Spec;
  readonly hosts_that_fit: readonly string[];
  readonly queue_position: number | null;
  readonly pending_reason: string | null;
  readonly expected_start_at: string | null;
}

/** An uploaded folder of code. */
export interface Bundle {
  readonly bundle: string;
  readonly files: number;
  readonly bytes: number;
}

export interface WrongField {
  readonly field: string;
  readonly message: string;
}
