/**
 * Throughput and CPU of every target, in interleaved rounds: one round takes each target through
 * all workloads on a fresh overlay, and the next round starts with another target. So a slow minute
 * of the machine hits no target in particular.
 */
import { type FioEngine, fio } from './fio.ts';
import { busyMicros, cpuMicros } from './machine.ts';
import type { IoSample } from './results.ts';
import type { Context, Target } from './targets.ts';
import type { Shape, Workload } from './workloads.ts';

export interface IoPlan {
  rounds: number;
  targets: readonly Target[];
  workloads: readonly Workload[];
  shape: Shape;
  engine: FioEngine;
  progress: (line: string) => void;
}

export async function measureIo(
  plan: IoPlan,
  context: Context,
): Promise<{ samples: IoSample[]; bringUp: { target: string; ms: number }[] }> {
  const samples: IoSample[] = [];
  const bringUp: { target: string; ms: number }[] = [];
  for (let round = 0; round < plan.rounds; round++) {
    for (let i = 0; i < plan.targets.length; i++) {
      const target = plan.targets[(i + round) % plan.targets.length]!;
      const running = await target.up(context);
      bringUp.push({ target: target.id, ms: running.bringUpMs });
      for (const workload of plan.workloads) {
        const before = running.pids.length > 0 ? cpuMicros(running.pids) : 0;
        const busyBefore = busyMicros();
        const result = await fio(running.node, workload.job(plan.shape), plan.engine, round + 1);
        const spent = running.pids.length > 0 ? cpuMicros(running.pids) - before : null;
        const busy = busyMicros() - busyBefore;
        const value = workload.unit === 'IOPS' ? result.iops : result.rate / 1e6;
        samples.push({
          round,
          target: target.id,
          workload: workload.id,
          value,
          p50: result.p50,
          p99: result.p99,
          cpu: spent === null ? null : spent / result.requests,
          machine: busy / result.requests,
        });
        plan.progress(
          `round ${round + 1}/${plan.rounds}  ${target.id.padEnd(8)} ` +
            `${workload.title.padEnd(34)} ${value.toFixed(0).padStart(8)} ${workload.unit}`,
        );
      }
      await running.down();
    }
  }
  return { samples, bringUp };
}
