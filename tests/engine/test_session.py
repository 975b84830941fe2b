import os
import signal
import subprocess
import sys
import time

import ray

from cleanscale.engine.session import cluster_cpus, own_signals, prepare_data, session
from cleanscale.engine.settings import EngineSettings


def test_a_session_that_was_already_there_is_joined_and_left_running(ray_session):
    with session(EngineSettings(num_cpus=1)):
        assert cluster_cpus() == 2
    assert ray.is_initialized()


def test_data_keeps_its_order_and_draws_no_bars_of_its_own(ray_session):
    prepare_data()
    context = ray.data.DataContext.get_current()
    assert context.execution_options.preserve_order
    assert not context.enable_progress_bars


def test_a_named_cluster_that_does_not_answer_is_the_users_error_within_a_minute():
    """In a process of its own, which has no session yet."""
    code = (
        "from cleanscale.engine.session import session\n"
        "from cleanscale.engine.settings import EngineSettings\n"
        "from cleanscale.errors import ConfigError\n"
        "try:\n"
        "    with session(EngineSettings(address='127.0.0.1:9')): pass\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "no Ray cluster answers at '127.0.0.1:9'" in done.stdout, done.stderr
    assert "--engine.address" in done.stdout
    assert time.monotonic() - started < 60


def test_a_handler_of_sigterm_outlives_the_start_of_ray():
    before = signal.getsignal(signal.SIGTERM)
    with own_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does with a handler of its own
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_cluster_whose_token_this_process_lacks_is_the_users_error(tmp_path):
    """In a process of its own, with a home without a token; something listens at the address."""
    code = (
        "from cleanscale.engine.session import session\n"
        "from cleanscale.engine.settings import EngineSettings\n"
        "from cleanscale.errors import ConfigError\n"
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    try:\n"
        "        with session(EngineSettings(address=f'127.0.0.1:{server.getsockname()[1]}')): pass\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert "did not take this process's token" in done.stdout, done.stderr
    assert "RAY_AUTH_TOKEN" in done.stdout
