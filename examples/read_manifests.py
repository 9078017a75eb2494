#!/usr/bin/env python3
"""Reads what a Flumen delivery stream wrote: exactly the objects of its committed cuts.

    python3 examples/read_manifests.py DIR                      # the cuts, one line each
    python3 examples/read_manifests.py DIR --sql 'select device, count(*) from delivered group by 1'
    python3 examples/read_manifests.py s3://bucket/clicks/lake --sql 'select count(*) from delivered'

DIR is the directory that the delivery stream writes to. For S3, give the bucket and the prefix that its
manifests are under (`<prefix>/<name>`): only manifests are listed then. The server and credentials
come from AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …; objects are
fetched into a temporary directory.

SQL sees `delivered` (the rows of all data objects) and the tables `cuts` and `objects` (what the manifests
say). From Python, with pandas installed:

    from read_manifests import connect
    frame = connect("DIR").sql("select * from delivered").df()

Needs duckdb; for S3 pyarrow too. An object that no manifest names is left by a crash, or not
committed yet: it does not count. docs/delivery.md has every field of a manifest.
"""

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

FORMAT = "flumen-manifest/1"


class Broken(Exception):
    """What is there is not what the manifests say."""


class Directory:
    """A local directory; keys are paths below it."""

    def __init__(self, root):
        self.root = Path(root).absolute()

    def manifests(self):
        return sorted(self.root.glob("**/_manifest/*.json"))

    def read(self, path):
        return path.read_bytes()

    def fetch(self, key):
        if ".." in key.split("/") or key.startswith("/"):
            raise Broken(f"{key} is not the key of an object")
        return self.root / key


class Bucket:
    """A bucket; keys are below its top, manifests are looked for below a prefix."""

    def __init__(self, url):
        from pyarrow import fs

        self.fs = fs
        self.bucket, _, self.prefix = url.removeprefix("s3://").partition("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        # Where no endpoint is named, pyarrow finds AWS and the region itself.
        self.s3 = fs.S3FileSystem(endpoint_override=endpoint, region=os.environ.get("AWS_REGION"))
        self.files = Path(tempfile.mkdtemp(prefix="flumen-objects-"))
        atexit.register(shutil.rmtree, self.files, ignore_errors=True)

    def manifests(self):
        top = f"{self.bucket}/{self.prefix}".rstrip("/")
        found = self.s3.get_file_info(self.fs.FileSelector(top, recursive=True))
        is_manifest = lambda path: "/_manifest/" in path and path.endswith(".json")
        return sorted(info.path for info in found if is_manifest(info.path))

    def read(self, path):
        with self.s3.open_input_stream(path) as stream:
            return stream.read()

    def fetch(self, key):
        file = self.files / f"{zlib.crc32(key.encode()):08x}-{Path(key).name}"
        if not file.exists():
            file.write_bytes(self.read(f"{self.bucket}/{key}"))
        return file


def open_store(location):
    return Bucket(location) if location.startswith("s3://") else Directory(location)


def read_cuts(store, delivery=None):
    """The manifests of one delivery stream, in the order of its cuts, checked."""
    cuts = []
    for path in store.manifests():
        cut = json.loads(store.read(path))
        if cut.get("format") != FORMAT:
            raise Broken(f"{path} has format {cut.get('format')!r}; this reads {FORMAT}")
        if delivery in (None, cut["delivery"]):
            cuts.append(cut)
    names = sorted({cut["delivery"] for cut in cuts})
    if len(names) > 1:
        raise Broken(f"several delivery streams are here; choose one with --delivery: {', '.join(names)}")
    # A delivery stream that was deleted and made again has another incarnation, and begins at 0.
    cuts.sort(key=lambda cut: (cut["incarnation"], cut["cut"]))
    last = {}
    for cut in cuts:
        expected = last.get(cut["incarnation"], -1) + 1
        if cut["cut"] != expected:
            raise Broken(f"cut {expected} of {cut['incarnation']} has no manifest, and later ones have")
        last[cut["incarnation"]] = cut["cut"]
    keys = [obj["key"] for cut in cuts for obj in cut["objects"]]
    if len(keys) != len(set(keys)):
        raise Broken("an object is named twice")
    return cuts


def checked(store, obj):
    """The file of an object, whose size and checksum are those of its manifest."""
    file = store.fetch(obj["key"])
    content = file.read_bytes()
    crc32 = f"{zlib.crc32(content):08x}"
    # A store may not have said the checksum of what an attempt before a crash wrote.
    if len(content) != obj["bytes"] or obj.get("crc32", crc32) != crc32:
        raise Broken(f"{obj['key']} is not what its manifest says")
    return file


def quoted(text):
    return "'" + str(text).replace("'", "''") + "'"


def file_list(files):
    # DuckDB takes names for patterns.
    literal = lambda name: "".join(f"[{c}]" if c in "*?[" else c for c in str(name))
    return "[" + ", ".join(quoted(literal(file)) for file in files) + "]"


def rows_of(files):
    """SQL for the rows of all objects; columns that some of them lack are null there."""
    parts = []
    for (encoding, compression), names in sorted(files.items()):
        if encoding == "parquet":
            parts.append(f"read_parquet({file_list(names)}, union_by_name=true, hive_partitioning=false)")
        elif encoding == "ndjson" and compression in ("none", "gzip", "zstd"):
            parts.append(
                f"read_json({file_list(names)}, format='newline_delimited', compression='{compression}', "
                "union_by_name=true, hive_partitioning=false)"
            )
        else:
            raise Broken(f"rows of {encoding} objects compressed with {compression} cannot be told apart here")
    return " union all by name ".join(f"select * from {part}" for part in parts)


def connect(location, delivery=None):
    """A DuckDB connection with `delivered`, `cuts` and `objects`."""
    import duckdb

    store = open_store(location)
    cuts = read_cuts(store, delivery)
    files = {}
    connection = duckdb.connect()
    connection.execute(
        "create table cuts (incarnation text, cut ubigint, records ubigint, rows ubigint, failed ubigint,"
        " dropped ubigint, expired ubigint, oldest_arrival timestamptz, newest_arrival timestamptz)"
    )
    connection.execute(
        "create table objects (incarnation text, cut ubigint, kind text, key text, records ubigint,"
        " bytes ubigint, crc32 text, partition map(text, text), oldest_arrival timestamptz)"
    )
    for cut in cuts:
        name = (cut["incarnation"], cut["cut"])
        counts = [cut[field] for field in ("records", "rows", "failed", "dropped", "expired")]
        times = (cut.get("oldest_arrival"), cut.get("newest_arrival"))
        connection.execute("insert into cuts values (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*name, *counts, *times])
        for obj in cut["objects"]:
            values = [obj["kind"], obj["key"], obj["records"], obj["bytes"], obj.get("crc32")]
            values += [obj.get("partition", {}), obj["oldest_arrival"]]
            connection.execute("insert into objects values (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*name, *values])
            if obj["kind"] == "data":
                files.setdefault((obj["encoding"], obj["compression"]), []).append(checked(store, obj))
    if files:
        connection.execute(f"create view delivered as {rows_of(files)}")
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("location", help="directory, or s3://BUCKET/PREFIX")
    parser.add_argument("--delivery", help="name of the delivery stream, where there are several")
    parser.add_argument("--sql", default="select * from cuts", help="what to ask; tab-separated")
    asked = parser.parse_args()
    try:
        result = connect(asked.location, asked.delivery).sql(asked.sql)
    except Broken as broken:
        sys.exit(f"error: {broken}")
    print("\t".join(result.columns))
    for row in result.fetchall():
        print("\t".join("" if value is None else str(value) for value in row))


if __name__ == "__main__":
    main()
