#!/usr/bin/env python3
"""Reads and checks stores of cowblk. Written from cow/FORMAT.md alone.

cowreader.py content STORE NAME[@TAG] [--unlocked]   the disk's bytes to standard output
cowreader.py check STORE                             a JSON object for each disk to standard output

Exit codes: 0 done, 4 in use, 5 refused. --unlocked reads a disk that a process has open, without its locks.

content prints a JSON object to standard error for each layer that was not closed in order. The content of such a layer
is that of the last flush, or later. "shared-map": true: a shared map may record later writes.
"""

import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import struct
import sys
import uuid as uuids

MAX = 2**60
ZERO16 = bytes(16)
ZERO32 = bytes(32)


class Refused(Exception):
    """The store violates FORMAT.md."""


class InUse(Exception):
    """A lock excludes this reader."""


# Checksums

_TABLE = []
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = (_c >> 1) ^ (0x82F63B78 if _c & 1 else 0)
    _TABLE.append(_c)


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


_zero_crc = {}


def data_sum(data):
    """Returns the checksum of a unit: its CRC-32C XORed with the CRC-32C of as many zeros."""
    n = len(data)
    if n not in _zero_crc:
        _zero_crc[n] = crc32c(bytes(n))
    if not any(data):
        return 0
    return crc32c(data) ^ _zero_crc[n]


def pages_crc(pages):
    """Returns the checksum of a map or a table: CRC-32C of the non-zero pages, each after its number."""
    crc = 0
    for number, page in enumerate(pages):
        if any(page):
            crc = crc32c(struct.pack("<Q", number) + page, crc)
    return crc


def fingerprint(read, n):
    h = hashlib.sha256(struct.pack("<Q", n))
    ranges = [(0, 65536), (max(0, n - 65536), 65536)]
    ranges += [(4096 * (n // 4096 * k // 256), 4096) for k in range(256)]
    for start, length in ranges:
        h.update(read(start, max(0, min(length, n - start))))
    return h.hexdigest()


# Files and locks

F_OFD_SETLK = 37
RANGE_BASE = 2**62


class File:
    def __init__(self, path):
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise Refused(f"{path}: no such file")

    def close(self):
        os.close(self.fd)

    def size(self):
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, start, n):
        """Returns n bytes; fewer at the end of the file."""
        out = b""
        while len(out) < n:
            piece = os.pread(self.fd, n - len(out), start + len(out))
            if not piece:
                break
            out += piece
        return out

    def whole(self, start, n):
        out = self.read(start, n)
        if len(out) < n:
            raise Refused(f"{self.path}: ends at {start + len(out)}, expected {start + n}")
        return out

    def lock(self):
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{self.path}: locked by a writer")

    def lock_range(self, start, n):
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, RANGE_BASE + start, n, 0)
        try:
            fcntl.fcntl(self.fd, F_OFD_SETLK, lock)
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                raise InUse(f"{self.path}: bytes {start} to {start + n} are locked by a writer")
            if e.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EOVERFLOW):
                raise


# Documents

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}\Z")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
HEX64 = re.compile(r"[0-9a-f]{64}\Z")
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?Z\Z", re.ASCII)


def time(v):
    found = TIME.match(v) if isinstance(v, str) else None
    if found is None:
        return False
    year, *rest = [int(g) for g in found.groups()[:6]]
    try:
        datetime.datetime(year or 2000, *rest)  # datetime has no year 0; it is a leap year like 2000
    except ValueError:
        return False
    return True


def source_format(v):
    return v in ("raw", "qcow2")


def not_empty(kind):
    return lambda v: isinstance(v, kind) and len(v) > 0


def parse_document(data):
    def no_number(text):
        raise Refused(f"number {text} is not an integer")

    def integer(text):
        if text == "-0":
            raise Refused("number -0")
        return int(text)

    def members(pairs):
        names = [n for n, _ in pairs]
        if len(set(names)) != len(names):
            raise Refused("a member occurs twice")
        return dict(pairs)

    def depth(v, level=0):
        if level > 32:
            raise Refused("too deep")
        if isinstance(v, dict):
            for e in v.values():
                depth(e, level + 1)
        elif isinstance(v, list):
            for e in v:
                depth(e, level + 1)
        elif isinstance(v, str):
            v.encode()

    if len(data) > 64 << 20:
        raise Refused("document larger than 64 MiB")
    try:
        v = json.loads(data.decode("utf-8"), object_pairs_hook=members, parse_float=no_number, parse_int=integer,
                       parse_constant=no_number)
        depth(v)
    except (ValueError, RecursionError) as e:
        raise Refused(str(e))
    if not isinstance(v, dict):
        raise Refused("no object")
    return v


def number(low=0, high=2**63 - 1):
    return lambda v: type(v) is int and low <= v <= high


def text(pattern):
    return lambda v: isinstance(v, str) and bool(pattern.match(v))


def size(v):
    return type(v) is int and 512 <= v <= MAX and v % 512 == 0


def absolute(v):
    return isinstance(v, str) and v.startswith("/")


def any_text(v):
    return isinstance(v, str)


def clean_path(field):
    """Reports whether field is an absolute path without empty, "." or ".." elements, padded with zero bytes."""
    path = field.rstrip(b"\0")
    return path[:1] == b"/" and b"\0" not in path and (path == b"/" or not {b"", b".", b".."} & set(path[1:].split(b"/")))


def fit(where, v, required, optional=()):
    """Checks the members of an object against tables of tests."""
    if not isinstance(v, dict):
        raise Refused(f"{where}: no object")
    optional = dict(optional)
    for name, test in required.items():
        if name not in v:
            raise Refused(f"{where}: {name} is missing")
    for name, value in v.items():
        test = required.get(name) or optional.get(name)
        if test is None:
            raise Refused(f"{where}: unknown member {name}")
        if not test(value):
            raise Refused(f"{where}: {name}: {value!r}")


IDENTITY = {"dev": number(0, 2**64 - 1), "inode": number(0, 2**64 - 1), "size": number(), "mtime": number(-2**63),
            "block": lambda v: isinstance(v, bool)}


def is_object(v):
    return isinstance(v, dict)


def check_disk_json(m, name):
    if m.get("version") != 1:
        raise Refused(f"version {m.get('version')}")
    fit("disk.json", m, {
        "version": number(), "name": lambda v: v == name, "size": size,
        "block-size": lambda v: type(v) is int and 512 <= v <= 65536 and v & (v - 1) == 0,
        "created": time, "layers": lambda v: isinstance(v, list) and len(v) > 0,
    }, {"base": is_object, "table-start": number(), "may-ignore": is_object})
    base = m.get("base")
    if base is not None:
        fit("base", base, {"offset": number(0, MAX), "size": size, "fingerprint": text(HEX64)},
            {"image": text(NAME), "path": absolute, "identity": is_object})
        if ("image" in base) == ("path" in base) or ("path" in base) != ("identity" in base):
            raise Refused("base: expected an image, or a path with an identity")
        if "image" in base and base["offset"] != 0:
            raise Refused("base.offset: expected 0 on an image")
        if "identity" in base:
            fit("base.identity", base["identity"], IDENTITY)
    seen, tags = set(), set()
    for i, layer in enumerate(m["layers"]):
        fit(f"layers[{i}]", layer, {"uuid": text(UUID), "map": any_text, "data": any_text, "data-offset": number(0, MAX),
                                     "created": time}, {"tag": text(NAME), "sealed": time})
        own = f"layers/{layer['uuid']}/"
        if layer["map"].startswith("/"):
            if not layer["data"].startswith("/"):
                raise Refused(f"layers[{i}].data: {layer['data']}")
        elif layer["map"] != own + "map" or layer["data"] != own + "data" or layer["data-offset"] != 0:
            raise Refused(f"layers[{i}].map: {layer['map']}")
        if layer["uuid"] in seen or layer["uuid"] == str(uuids.UUID(int=0)):
            raise Refused(f"layers[{i}].uuid: {layer['uuid']}")
        seen.add(layer["uuid"])
        if "sealed" in layer and i == len(m["layers"]) - 1:
            raise Refused(f"layers[{i}].sealed: of the head")
        if "tag" in layer:
            if layer["tag"] in tags or i == len(m["layers"]) - 1:
                raise Refused(f"layers[{i}].tag: {layer['tag']}")
            tags.add(layer["tag"])
    return m


def check_image_json(m, name):
    if m.get("version") != 1:
        raise Refused(f"version {m.get('version')}")
    fit("image.json", m, {
        "version": number(), "name": lambda v: v == name, "size": size, "fingerprint": text(HEX64),
        "identity": is_object, "source": any_text, "format": source_format, "imported": time,
    }, {"may-ignore": is_object, "sha256": text(HEX64), "chunk-sha256": text(HEX64), "backing": not_empty(list)})
    if "sha256" not in m and "chunk-sha256" not in m:
        raise Refused("neither sha256 nor chunk-sha256")
    for i, b in enumerate(m.get("backing", [])):
        fit(f"backing[{i}]", b, {"path": any_text, "format": source_format})
    fit("identity", m["identity"], IDENTITY)
    return m


def chunk_digest(f, n):
    """Returns the chunk digest of an image of n bytes."""
    h = hashlib.sha256(struct.pack("<Q", n))
    for number_, start in enumerate(range(0, n, 65536)):
        chunk = f.whole(start, min(65536, n - start))
        if any(chunk):
            h.update(struct.pack("<Q", number_) + hashlib.sha256(chunk).digest())
    return h.hexdigest()


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


class Store:
    def __init__(self, path):
        self.path = path
        self.pending = {}
        self.undecided = []
        self.find_pending()

    def join(self, *elements):
        return os.path.join(self.path, *elements)

    def find_pending(self):
        """Finds changes of several disks whose process has ended, and the manifests that they put in place of older ones."""
        tmp = self.join("tmp")
        for work in sorted(os.listdir(tmp)) if os.path.isdir(tmp) else []:
            record = os.path.join(tmp, work, "commit.json")
            if not os.path.exists(record) or not self.is_dead(os.path.join(tmp, work)):
                continue
            try:
                c = parse_document(read_file(record))
                fit("commit.json", c, {"from": lambda v: v is None or isinstance(v, list), "to": lambda v: v is None or isinstance(v, list)})
                before, after = c["from"] or [], c["to"] or []
                if len(before) != len(after) or not all(text(UUID)(u) for u in before):
                    raise Refused("from and to do not fit")
                for head, m in zip(before, after):
                    check_disk_json(m, m.get("name") if is_object(m) else None)
                    if not NAME.match(m["name"]):
                        raise Refused(f"name {m['name']}")
                    self.pending.setdefault(m["name"], []).append((head, m))
            except Refused as e:
                self.undecided.append(f"{record}: {e}")

    @staticmethod
    def is_dead(work):
        try:
            fd = os.open(os.path.join(work, "lock"), os.O_RDONLY)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    def names(self, kind):
        path = self.join(kind)
        return [n for n in sorted(os.listdir(path)) if NAME.match(n)] if os.path.isdir(path) else []

    def disk(self, name):
        if self.undecided:
            raise Refused(self.undecided[0])
        path = self.join("disks", name, "disk.json")
        if not os.path.exists(path):
            raise Refused(f"{path}: no manifest")
        m = check_disk_json(parse_document(read_file(path)), name)
        for head, after in self.pending.get(name, []):
            if m["layers"][-1]["uuid"] == head:
                m = after
        return m

    def image(self, name):
        path = self.join("images", name, "image.json")
        if not os.path.exists(path):
            raise Refused(f"{path}: no image")
        return check_image_json(parse_document(read_file(path)), name)


# Layers

HEAD, SEALED = 1, 2


class Layer:
    """One layer. Opening it makes tests 1 to 5 as far as an open of cowblk does."""

    def __init__(self, store, entry, locked=True):
        path = (lambda p: p if p.startswith("/") else store.join(p))
        self.entry = entry
        self.map = File(path(entry["map"]))
        if locked:
            self.map.lock()
        self.header()
        self.data = File(path(entry["data"]))
        if locked:
            self.map.lock_range(0, self.map_end)
            self.data.lock_range(self.data_offset, self.size)
        if self.map.size() < self.map_end + (self.sums_length() if self.data_sums else 0):
            raise Refused(f"{self.map.path}: too short")
        self.bitmap = self.map.whole(4096, self.map_end - 4096)
        self.count = sum(bin(b).count("1") for b in self.bitmap)
        self.check_bitmap()
        self.find_sums(store)
        self.right = set()

    def close(self):
        self.map.close()
        self.data.close()

    def header(self):
        s = self.map.read(0, 512)
        if len(s) < 512 or s[:8] != b"COWBLK\0L":
            raise Refused(f"{self.map.path}: no map")
        u32 = lambda at: struct.unpack_from("<I", s, at)[0]
        u64 = lambda at: struct.unpack_from("<Q", s, at)[0]
        if u32(8) != 1 or u64(16) != 0:
            raise Refused(f"{self.map.path}: version {u32(8)}, must_refuse {u64(16):#x}")
        if u32(508) != crc32c(s[:508]):
            raise Refused(f"{self.map.path}: checksum of the header")
        may_ignore, clear_on_open, flags = u64(24), u64(32), u32(88)
        self.uuid, self.parent = s[40:56], s[56:72]
        self.size, self.block_size, self.state = u64(72), u32(80), u32(84)
        self.clean, self.map_crc, self.owned = bool(flags & 1), u32(92), u64(96)
        self.data_offset, self.base_size, self.base = u64(104), u64(128), s[136:168]
        self.sums_crc, shared = u32(168), bool(clear_on_open & 2)
        wrong = []
        if u32(12) != 4096:
            wrong.append("map_offset")
        if not 512 <= self.size <= MAX or self.size % 512:
            raise Refused(f"{self.map.path}: size {self.size}")
        if not 512 <= self.block_size <= 65536 or self.block_size & (self.block_size - 1):
            raise Refused(f"{self.map.path}: block_size {self.block_size}")
        self.blocks = -(-self.size // self.block_size)
        if self.state not in (HEAD, SEALED) or flags & ~1 or (self.state == SEALED and not self.clean):
            wrong.append("state or flags")
        if self.uuid in (ZERO16, self.parent):
            wrong.append("uuid")
        if self.owned > self.blocks:
            wrong.append("owned")
        if self.data_offset > MAX or self.data_offset % 512 or self.base_size > MAX:
            wrong.append("data_offset or base_size")
        if shared and (self.state != HEAD or self.clean or u64(172) == 0 or not clean_path(s[196:396])):
            wrong.append("shared")
        if wrong:
            raise Refused(f"{self.map.path}: {', '.join(wrong)}")
        self.head_crc = bool(clear_on_open & 1)
        self.shared = shared
        self.data_sums = self.state == SEALED and bool(may_ignore & 1)
        self.unit = min(self.block_size, 4096)
        self.map_end = 4096 + -(-self.blocks // (4096 * 8)) * 4096

    def units(self):
        return -(-self.size // self.unit)

    def sums_length(self):
        return -(-self.units() * 4 // 4096) * 4096

    def has(self, i):
        return i < self.blocks and bool(self.bitmap[i // 8] >> (i % 8) & 1)

    def check_bitmap(self):
        last = -1
        for at in range(len(self.bitmap) - 1, -1, -1):
            if self.bitmap[at]:
                last = at * 8 + self.bitmap[at].bit_length() - 1
                break
        if last >= self.blocks:
            raise Refused(f"{self.map.path}: a bit for block {last} of {self.blocks}")
        if last >= 0:
            need = self.data_offset + min((last + 1) * self.block_size, self.size)
            if self.data.size() < need:
                raise Refused(f"{self.data.path}: {self.data.size()} bytes, expected {need}")
        if self.clean and self.count != self.owned:
            raise Refused(f"{self.map.path}: owned {self.owned}, found {self.count}")
        if self.state == SEALED or self.clean and self.head_crc:
            pages = [self.bitmap[at:at + 4096] for at in range(0, len(self.bitmap), 4096)]
            if pages_crc(pages) != self.map_crc:
                raise Refused(f"{self.map.path}: map_crc")

    def find_sums(self, store):
        """Finds the file and the offset of the checksum table, if there is one."""
        self.table = None
        if self.data_sums:
            self.table, self.table_at, self.table_crc = self.map, self.map_end, self.sums_crc
            return
        if self.state != SEALED or not self.entry["map"].startswith("/"):
            return
        path = store.join("layers", self.entry["uuid"], "sums")
        if not os.path.exists(path):
            return
        f = File(path)
        s = f.read(0, 512)
        if len(s) < 512 or not any(s):
            return  # not finished
        u32 = lambda at: struct.unpack_from("<I", s, at)[0]
        u64 = lambda at: struct.unpack_from("<Q", s, at)[0]
        if s[:8] != b"COWBLK\0S" or u32(508) != crc32c(s[:508]) or u32(8) != 1 or u32(12) != 4096 or u64(16) != 0:
            raise Refused(f"{path}: header")
        if s[24:40] != self.uuid or u64(40) != self.size or u32(48) != self.block_size:
            raise Refused(f"{path}: of another layer")
        if f.size() < 4096 + self.sums_length():
            raise Refused(f"{path}: too short")
        self.table, self.table_at, self.table_crc = f, 4096, u32(52)

    def check_table(self):
        """Makes test 5 in full: the table's checksum, and every unit."""
        if self.table is None:
            return
        raw = self.table.whole(self.table_at, self.sums_length())
        if pages_crc([raw[at:at + 4096] for at in range(0, len(raw), 4096)]) != self.table_crc:
            raise Refused(f"{self.map.path}: sums_crc")
        for u in range(self.units()):
            self.check_unit(u)

    def check_unit(self, u):
        if self.table is None or u in self.right:
            return
        expected = struct.unpack("<I", self.table.whole(self.table_at + 4 * u, 4))[0]
        start = u * self.unit
        found = 0
        if self.has(start // self.block_size):
            found = data_sum(self.data.whole(self.data_offset + start, min(self.unit, self.size - start)))
        if found != expected:
            raise Refused(f"{self.data.path}: unit {u}: sum {found:08x}, expected {expected:08x}")
        self.right.add(u)

    def read(self, pos, n):
        here = min(n, max(0, self.size - pos))
        if here:
            for u in range(pos // self.unit, (pos + here - 1) // self.unit + 1):
                self.check_unit(u)
        return self.data.whole(self.data_offset + pos, here) + bytes(n - here)


# Stacks

class Stack:
    def __init__(self, store, ref, unlocked=False):
        self.store = store
        name, _, tag = ref.partition("@")
        m = store.disk(name)
        entries = m["layers"]
        if tag:
            at = [i for i, e in enumerate(entries) if e.get("tag") == tag]
            if not at:
                raise Refused(f"{ref}: no such tag")
            entries = entries[:at[0] + 1]
        self.manifest = m
        self.files = []
        self.layers = []
        self.warnings = []
        self.open_base(m)
        for i, entry in enumerate(entries):
            self.layers.append(Layer(store, entry, not (unlocked and i == len(entries) - 1)))
        self.check(m, tag)
        self.size = self.layers[-1].size

    def close(self):
        for f in self.files + self.layers:
            f.close()

    def open_base(self, m):
        self.base = None
        self.base_size, self.base_print = 0, ZERO32
        b = m.get("base")
        if b is None:
            return
        path = b.get("path") or self.store.join("images", b["image"], "data")
        self.base = File(path)
        self.files.append(self.base)
        self.base_offset, self.base_size = b["offset"], b["size"]
        self.base_print = bytes.fromhex(b["fingerprint"])
        if not any(os.path.samefile(path, self.path_of(e["data"])) for e in m["layers"] if os.path.exists(self.path_of(e["data"]))):
            self.base.lock()
        if self.base_size:
            self.base.lock_range(self.base_offset, self.base_size)
        if self.base.size() < self.base_offset + self.base_size:
            raise Refused(f"{path}: ends before the base does")
        if fingerprint(lambda at, n: self.base.whole(self.base_offset + at, n), self.base_size) != b["fingerprint"]:
            raise Refused(f"{path}: fingerprint")
        if "image" in b:
            image = self.store.image(b["image"])
            if image["fingerprint"] != b["fingerprint"] or image["size"] != b["size"]:
                raise Refused(f"{b['image']}: another image")
            if self.base.size() != image["size"]:
                raise Refused(f"{path}: {self.base.size()} bytes, expected {image['size']}")

    def check_image(self):
        """Checks that the whole image has the digests of its document."""
        b = self.manifest.get("base")
        if b is None or "image" not in b:
            return
        image = self.store.image(b["image"])
        n = image["size"]
        if "chunk-sha256" in image and chunk_digest(self.base, n) != image["chunk-sha256"]:
            raise Refused(f"{self.base.path}: chunk-sha256")
        if "sha256" in image and hashlib.sha256(self.base.whole(0, n)).hexdigest() != image["sha256"]:
            raise Refused(f"{self.base.path}: sha256")

    def path_of(self, p):
        return p if p.startswith("/") else self.store.join(p)

    def check(self, m, tag):
        parent, size = ZERO16, 0
        for layer in self.layers:
            where = layer.map.path
            if layer.uuid != uuids.UUID(layer.entry["uuid"]).bytes or layer.parent != parent:
                raise Refused(f"{where}: uuid or parent")
            if layer.block_size != m["block-size"] or layer.data_offset != layer.entry["data-offset"]:
                raise Refused(f"{where}: block_size or data_offset")
            if layer.base != self.base_print or layer.base_size != self.base_size:
                raise Refused(f"{where}: base or base_size")
            if layer.size < size or layer.size > m["size"]:
                raise Refused(f"{where}: size")
            parent, size = layer.uuid, layer.size
        top = self.layers[-1]
        if not tag and top.size != m["size"]:
            raise Refused(f"{top.map.path}: size {top.size}, the manifest says {m['size']}")
        self.sealed_top = not tag and top.state == SEALED
        for layer in self.layers:
            if layer.state == HEAD and not layer.clean:
                self.warnings.append({"map": layer.map.path, "unclean": True, "shared-map": layer.shared})

    def content(self):
        step = self.layers[-1].block_size
        for pos in range(0, self.size, step):
            yield self.read(pos, min(step, self.size - pos))

    def read(self, pos, n):
        i = pos // self.layers[-1].block_size
        for layer in reversed(self.layers):
            if i * layer.block_size < layer.size and layer.has(i):
                return layer.read(pos, n)
        if self.base is None:
            return bytes(n)
        here = min(n, max(0, self.base_size - pos))
        return self.base.whole(self.base_offset + pos, here) + bytes(n - here)


# Checker

def parts(store, m):
    """Returns the byte ranges of inodes that a disk uses, with their use: test 7."""
    out = []

    def add(kind, owner, head, path, start, n):
        try:
            st = os.stat(path)
        except FileNotFoundError:
            return
        key = (st.st_dev, st.st_ino) if not os.path.stat.S_ISBLK(st.st_mode) else ("block", st.st_rdev)
        out.append((key, start, start + n, kind, owner, head))

    b = m.get("base")
    if b is not None and "path" in b:
        add("base", None, False, b["path"], b["offset"], b["size"])
    blocks = -(-m["size"] // m["block-size"])
    for i, e in enumerate(m["layers"]):
        path = (lambda p: p if p.startswith("/") else store.join(p))
        head = i == len(m["layers"]) - 1
        add("map", e["uuid"], head, path(e["map"]), 0, 4096 + -(-blocks // 32768) * 4096)
        add("data", e["uuid"], head, path(e["data"]), e["data-offset"], m["size"])
    return out


def two_owners(store, manifests):
    """Returns the names of disks that share bytes with another owner."""
    everything = [(name, p) for name, m in manifests.items() for p in parts(store, m)]
    for image in store.names("images"):
        st = os.stat(store.join("images", image, "data"))
        everything.append((None, ((st.st_dev, st.st_ino), 0, MAX, "base", None, False)))
    bad = set()
    for i, (name, a) in enumerate(everything):
        for other, b in everything[:i]:
            if a[0] != b[0] or a[1] >= b[2] or b[1] >= a[2]:
                continue
            if a[3] == b[3] == "base" or a[3] == b[3] and a[4] == b[4] and name != other and not a[5] and not b[5]:
                continue
            bad |= {name, other} - {None}
    return bad


def check(store):
    disks, manifests = {}, {}
    for name in store.names("disks"):
        d = disks[name] = {"problems": [], "blocks": 0, "unclean": False, "in-use": False}
        try:
            manifests[name] = store.disk(name)
            stack = Stack(store, name)
            stack.check_image()
            if stack.sealed_top:
                d["problems"].append("the top layer is sealed")
            for layer in stack.layers:
                layer.check_table()
                d["blocks"] += layer.count
                if layer.data.size() < layer.data_offset + layer.size:
                    d["problems"].append(f"{layer.data.path}: shorter than the layer, nothing is lost")
            d["unclean"] = stack.layers[-1].state == HEAD and not stack.layers[-1].clean
            if any(layer.state == HEAD for layer in stack.layers[:-1]):
                d["problems"].append("a lower layer is not sealed")
            stack.close()
        except Refused as e:
            d["problems"].append(str(e))
        except InUse:
            d["in-use"] = True
    for name in two_owners(store, manifests):
        disks[name]["problems"].append("two owners of the same bytes")
    return disks


def main(args):
    try:
        store = Store(args[1])
        if args[0] == "check":
            json.dump(check(store), sys.stdout, indent=1)
            return 0
        stack = Stack(store, args[2], "--unlocked" in args[3:])
        for piece in stack.content():
            sys.stdout.buffer.write(piece)
        for warning in stack.warnings:
            print(json.dumps(warning), file=sys.stderr)
        return 0
    except InUse as e:
        print(e, file=sys.stderr)
        return 4
    except Refused as e:
        print(e, file=sys.stderr)
        return 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
