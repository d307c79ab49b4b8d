"""The allocator of large tensors on the CPU, in processes of its own: it stays once it is installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from tests.needs import needs_cpp_compiler


def run(code: str) -> None:
    """With MIB, `resident()` in MiB and the allocator installed."""
    start = """
        import torch
        from pathlib import Path
        from trivium.models.allocator import give_back_freed_memory, keep_freed_memory
        MIB = 1 << 20
        def resident(which="VmRSS"):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(which)) // 1024
        assert keep_freed_memory()
    """
    code = textwrap.dedent(start) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@needs_cpp_compiler
def test_a_training_step_of_changing_length_leaves_no_holes() -> None:
    """Tensors of two widths that stay until the backward pass, others that go at once, small ones that stay."""
    run("""
        import random
        random.seed(0)
        before, most, kept = resident(), 0, []
        for step in range(12):
            tokens = random.randint(900, 1000)
            stay = []
            for layer in range(16):
                for width in (256, 1024):
                    passing = torch.ones(tokens, width)
                    stay.append(passing * layer)
                    kept.append(torch.ones(50))
            most = max(most, sum(x.numel() for x in stay) * 4 // MIB)
            while stay:
                x = stay.pop()
                grad = torch.ones_like(x) * 2
                assert x[-1, -1] == len(stay) // 2
        grown = resident("VmHWM") - before
        assert grown < 1.3 * most + 16, (grown, most)
    """)


@needs_cpp_compiler
def test_what_is_spare_can_be_given_back_and_blocks_serve_again() -> None:
    run("""
        before = resident()
        x = torch.ones(64 * MIB // 4)
        place = x.data_ptr()
        del x
        assert resident() > before + 50
        assert torch.ones(63 * MIB // 4).data_ptr() == place
        assert give_back_freed_memory()
        assert resident() < before + 16
    """)


@needs_cpp_compiler
def test_tensors_are_as_usual() -> None:
    """Growing, sharing, in a child, from numpy, made before and freed after."""
    run("""
        import os
        import numpy
        for size in (0, 1, 1000, 65536, 65537, 3 * MIB):
            x = torch.arange(size)
            y = x.clone()
            x.resize_(2 * size)
            assert torch.equal(x[:size], y)
            shared = y.share_memory_()
            assert int(shared.sum()) == size * (size - 1) // 2
            assert torch.equal(torch.from_numpy(y.numpy().copy()), y)
        child = os.fork()
        if not child:
            os._exit(0 if torch.equal(torch.arange(MIB) + 1, torch.arange(1, MIB + 1)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        from concurrent.futures import ThreadPoolExecutor
        def work(number):
            return all(bool((torch.full((100_000 + number,), number) == number).all()) for _ in range(50))
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))
    """)


def test_freed_memory_is_kept_without_a_compiler_too() -> None:
    code = "from trivium.models import native; native.allocator = lambda: None\n"
    code += "from trivium.models.allocator import keep_freed_memory as keep; assert keep() in (True, False)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_cpp_compiler
def test_pages_move_between_blocks_of_other_sizes() -> None:
    """What one half of an update leaves serves the other half; the system is not asked for pages again."""
    run("""
        import resource
        def half(sizes):
            kept = [torch.full((size * MIB // 8,), number, dtype=torch.float64) for number, size in enumerate(sizes)]
            for number, x in enumerate(kept):
                assert x[0] == x[-1] == number and x.sum() == number * len(x)
        faults = []
        for update in range(8):
            half([12, 3, 3, 1] * 8)
            half([90, 9, 9, 2, 40, 1, 1])
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        grown = faults[-1] - faults[3]  # of the first updates some sizes are new
        assert grown < 200, faults
    """)


@needs_cpp_compiler
def test_tensors_keep_their_numbers_whatever_is_freed() -> None:
    run("""
        import random
        from concurrent.futures import ThreadPoolExecutor
        def work(seed):
            draw, alive = random.Random(seed), []
            for number in range(300):
                size = int(2 ** draw.uniform(14, 22.5))
                alive.append((torch.full((size,), float(number)), number))
                while len(alive) > 10 or (alive and draw.random() < 0.3):
                    x, said = alive.pop(draw.randrange(len(alive)))
                    assert bool((x == said).all())
                if draw.random() < 0.01:
                    give_back_freed_memory()
            return True
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(work, range(6)))
    """)
