"""`backup` and `restore`: a coordinator's data directory in one file."""

from pathlib import Path

import click

from tutti.apps.cli.options import ExistingFile, File, Folder, as_json, print_json


@click.command()
@click.argument("file", type=File)
@click.option("--data-dir", type=Folder, default="tutti-data", show_default=True, help="What `tutti up` was given.")
@as_json
def backup(file: Path, data_dir: Path, as_json: bool) -> None:
    """Write a coordinator's data directory to FILE, also while it runs.

    Events, accounts, ledger, models and secrets, each with its digest: keep FILE as safe as the directory. With
    --database and --blobs, back up PostgreSQL (pg_dump) and the bucket as well.

    \b
    Examples:
      tutti backup tutti-2026-11-28.tar
      tutti backup /mnt/backup/tutti.tar --data-dir /srv/tutti
    """
    from tutti.apps.backup import backup as write

    manifest = write(data_dir, file)
    if as_json:
        print_json({"file": str(file), "files": len(manifest.files), "version": manifest.version})
    else:
        click.echo(f"{file}: {len(manifest.files)} files, verified")


@click.command()
@click.argument("file", type=ExistingFile)
@click.option("--data-dir", type=Folder, required=True, help="A directory that is empty, or not there yet.")
@as_json
def restore(file: Path, data_dir: Path, as_json: bool) -> None:
    """Make a data directory from a backup, if every byte is as it was written.

    \b
    Examples:
      tutti restore tutti-2026-11-28.tar --data-dir tutti-data
    """
    from tutti.apps.backup import restore as read

    manifest = read(file, data_dir)
    if as_json:
        print_json({"data_dir": str(data_dir), "files": len(manifest.files), "version": manifest.version})
    else:
        click.echo(f"{data_dir}: {len(manifest.files)} files, verified; `tutti up --data-dir {data_dir}` goes on")
