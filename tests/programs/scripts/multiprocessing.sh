# Pools, queues, locks, shared memory and managers, by fork and by spawn.
cat >program.py <<'END'
import multiprocessing
from multiprocessing import shared_memory


def work(queue, lock, total):
    with lock:
        total.value += 1
    queue.put(total.value > 0)


def main():
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(sum(pool.map(abs, range(-500, 0))))
    context = multiprocessing.get_context("spawn")
    queue, lock, total = context.Queue(), context.Lock(), context.Value("i", 0)
    processes = [context.Process(target=work, args=(queue, lock, total)) for _ in range(2)]
    for process in processes:
        process.start()
    print([queue.get(timeout=60) for _ in processes], end=" ")
    for process in processes:
        process.join()
    print(total.value)
    first = shared_memory.SharedMemory(create=True, size=100_000)
    second = shared_memory.SharedMemory(first.name)
    first.buf[:4] = b"seen"
    print(bytes(second.buf[:4]))
    second.close()
    first.close()
    first.unlink()
    with multiprocessing.get_context("fork").Manager() as manager:
        shared = manager.dict(a=1)
        print(shared["a"])


if __name__ == "__main__":
    main()
END
python3 program.py
