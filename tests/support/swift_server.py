"""OpenStack Swift with its S3 interface, all its servers in one process; no root, no /etc/swift.

Usage: ``python swift_server.py DIRECTORY PORT ACCOUNT:USER PAGE``, the secret on stdin. Port 0 takes a free one; PAGE
is how many objects a listing shows at a time. The port is printed once requests are answered. Objects, accounts and
the hash suffix stay in the directory over restarts.
"""

import eventlet

eventlet.monkey_patch()

import logging  # noqa: E402
import secrets  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from eventlet import GreenPool, wsgi  # noqa: E402
from swift.common import storage_policy, utils  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.wsgi import SwiftHttpProtocol, loadapp  # noqa: E402

HOST = "127.0.0.1"
BACKENDS = ("account", "container", "object")

HASH_CONFIG = """
[swift-hash]
swift_hash_path_prefix = {prefix}
swift_hash_path_suffix = {suffix}
[storage-policy:0]
name = only
default = yes
"""

DEFAULTS = """
[DEFAULT]
swift_dir = {etc}
devices = {devices}
mount_check = false
disable_fallocate = true
log_level = WARNING
"""

BACKEND_CONFIG = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

FILTERS = ("catch_errors", "gatekeeper", "etag-quoter", "s3api", "tempauth", "copy", "slo", "dlo", "symlink")

FILTER_OPTIONS = {
    "s3api": "location = us-east-1\ncheck_bucket_owner = false\nmax_bucket_listing = {page}\n",
    "tempauth": "user_{user} = {secret} .admin\n",
}


def write_configs(directory: Path, options: dict[str, str]) -> Path:
    """Write the configuration of every server; the hash that object paths depend on only once."""
    etc = directory / "etc"
    (directory / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    etc.mkdir(exist_ok=True)
    if not (etc / "swift.conf").exists():
        (etc / "swift.conf").write_text(
            HASH_CONFIG.format(prefix=secrets.token_hex(8), suffix=secrets.token_hex(8)), encoding="utf-8"
        )
    defaults = DEFAULTS.format(etc=etc, devices=directory / "devices")
    for name in BACKENDS:
        (etc / f"{name}.conf").write_text(defaults + BACKEND_CONFIG.format(name=name), encoding="utf-8")
    proxy = defaults + f"[pipeline:main]\npipeline = {' '.join(FILTERS)} proxy-server\n"
    proxy += "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
    for name in FILTERS:
        proxy += f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n"
        proxy += FILTER_OPTIONS.get(name, "").format_map(options)
    (etc / "proxy.conf").write_text(proxy, encoding="utf-8")
    return etc


def write_ring(etc: Path, name: str, port: int) -> None:
    """One device on the port that the back end listens on this time; placement depends on the device alone."""
    builder = RingBuilder(4, 1, 1)
    device = {"id": 0, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": ""}
    builder.add_dev({**device, "ip": HOST, "port": port, "replication_ip": HOST, "replication_port": port})
    builder.rebalance()
    builder.get_ring().save(str(etc / f"{name}.ring.gz"))


def serve(directory: Path, port: int, options: dict[str, str]) -> None:
    """Start all servers in this process and wait for ever."""
    etc = write_configs(directory, options)
    utils.set_swift_dir(str(etc))
    storage_policy.reload_storage_policies()
    sockets = {name: eventlet.listen((HOST, 0), backlog=512) for name in BACKENDS}
    for name, sock in sockets.items():
        write_ring(etc, name, sock.getsockname()[1])
    sockets["proxy"] = eventlet.listen((HOST, port), backlog=512)
    logger = logging.getLogger("swift")
    threads = [
        eventlet.spawn(
            wsgi.server,
            sock,
            loadapp(str(etc / f"{name}.conf"), allow_modify_pipeline=True, global_conf={"log_level": "WARNING"}),
            logger,
            protocol=SwiftHttpProtocol,
            custom_pool=GreenPool(256),
            log_output=False,
            capitalize_response_headers=False,
        )
        for name, sock in sockets.items()
    ]
    print("ready", flush=True)
    for thread in threads:
        thread.wait()


if __name__ == "__main__":
    folder, wanted_port, account_user, page = sys.argv[1:]
    filters = {"user": account_user.replace(":", "_"), "secret": sys.stdin.read(), "page": page}
    serve(Path(folder).resolve(), int(wanted_port), filters)
