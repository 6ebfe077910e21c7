"""How a process of benchmarks.train_step answers: a line of JSON to each line.

'NAME SECONDS' runs that method of a worker for so long, at least twice;
'peak 0' is the machine's. Each framework has a process of its own: their OpenMP
runtimes and allocators do not mix, and a waiting one takes no time.
"""

import json
import resource
import sys
import time


def serve(worker, start: float, first: str = "train") -> None:
  """Answers the lines of standard input until it ends.

  Args:
    worker: whose methods are asked for by name.
    start: of the process, as `time.perf_counter` gives it.
    first: the method that is called before the first line is read.
  """
  getattr(worker, first)()
  seconds = time.perf_counter() - start
  _say(first_step_s=seconds, description=worker.describe())
  for line in sys.stdin:
    name, seconds = line.split()
    if name == "peak":
      _say(gflop_per_s=worker.peak())
      continue
    run, count, start = getattr(worker, name), 0, time.perf_counter()
    cpu = time.process_time()
    while count < 2 or time.perf_counter() - start < float(seconds):
      run()
      count += 1
    rate = count * worker.size / (time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / (count * worker.size)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _say(images_per_s=rate, cpu_s_per_image=cpu, peak_bytes=memory)


def _say(**answer) -> None:
  print(json.dumps(answer), flush=True)
