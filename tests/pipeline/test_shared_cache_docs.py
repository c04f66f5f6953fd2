"""What docs/shared-cache.md gives to AWS does what it says: a local AWS enforces its roles and policies."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from deploy_runner.pipeline.spec import CacheSpec
from deploy_runner.store.signatures import Signatures
from tests.conftest import ROOT, Project

PAGE = (ROOT / "docs/shared-cache.md").read_text()
KEY = "9d1f6a7be3c05248f7a91d3e5b60c8a4"
REPOSITORY = "repo:your-organisation/your-repository"
SERVER = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


def documents(heading: str) -> list[dict[str, Any]]:
    """Return the JSON below a heading of the page."""
    (section,) = re.findall(rf"^### {re.escape(heading)}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    return [json.loads(text) for text in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]


WRITER = documents("The role that writes: `cache-writer`")
READER = documents("The role for pull requests: `cache-reader`")
(POLICY,) = documents("The policy of the bucket")
(LIFECYCLE,) = documents("What expires")


class Account:
    """An account of a local AWS, set up as the page says."""

    def __init__(self, url: str) -> None:
        self._url = url
        iam, s3 = self.client("iam"), self.client("s3")
        s3.create_bucket(Bucket="your-cache")
        s3.put_bucket_lifecycle_configuration(Bucket="your-cache", LifecycleConfiguration=LIFECYCLE)
        iam.create_open_id_connect_provider(
            Url="https://token.actions.githubusercontent.com", ClientIDList=["sts.amazonaws.com"]
        )
        for name, (trust, permissions) in (("cache-writer", WRITER), ("cache-reader", READER)):
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
            iam.put_role_policy(RoleName=name, PolicyName="cache", PolicyDocument=json.dumps(permissions))
        # AWS authorises a DeleteObjects by each name in it, the local AWS by the bucket.
        statement = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::your-cache"}
        local = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_role_policy(RoleName="cache-writer", PolicyName="local", PolicyDocument=local)
        self.writer, self.reader = self._assume("cache-writer"), self._assume("cache-reader")

    def client(self, service: str, **keys: str) -> Any:
        """Return a client, as the account's root without keys."""
        known = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        return boto3.client(service, endpoint_url=self._url, region_name="us-east-1", **{**known, **keys})

    def _assume(self, role: str) -> dict[str, str]:
        """Return the environment of a job with a role."""
        token = ".".join(base64.urlsafe_b64encode(part).decode() for part in (b'{"alg":"none"}', b"{}", b""))
        got = self.client("sts").assume_role_with_web_identity(
            RoleArn=f"arn:aws:iam::123456789012:role/{role}", RoleSessionName="job", WebIdentityToken=token
        )["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": got["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": got["SecretAccessKey"],
            "AWS_SESSION_TOKEN": got["SessionToken"], "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": self._url,
            "DEPLOY_RUNNER_REMOTE": "s3://your-cache/deploy-runner",
        }  # fmt: skip

    def enforce(self) -> None:
        """Have every request authorised from now on."""
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self._url}/moto-api/reset-auth", data=b"0", headers=plain)
        urllib.request.urlopen(request).close()

    def names(self) -> list[str]:
        """Return what is in the cache, as the reader sees it."""
        keys = {
            "aws_access_key_id": self.reader["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": self.reader["AWS_SECRET_ACCESS_KEY"],
            "aws_session_token": self.reader["AWS_SESSION_TOKEN"],
        }
        listed = self.client("s3", **keys).list_objects_v2(Bucket="your-cache")
        return sorted(row["Key"].removeprefix("deploy-runner/v1/") for row in listed.get("Contents", []))


@pytest.fixture
def account() -> Iterator[Account]:
    """The account, in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.strip().isdecimal())
        try:
            yield Account(f"http://127.0.0.1:{int(port)}")
        finally:
            server.kill()


def on_another_machine(project: Project, folder: Path) -> Project:
    """Return the project without its store, trusting the public key of the page's secret."""
    other = Project(folder)
    public = Signatures((), {"DEPLOY_RUNNER_CACHE_KEY": KEY}).public_key
    for name in ("pipeline.yaml", "in.txt", "stages/texts.py"):
        other.write(name, (project.folder / name).read_bytes())
    with (folder / "pipeline.yaml").open("a") as file:
        file.write(f"cache: {{public_keys: ['{public}']}}\n")
    return other


def test_the_roles_of_the_docs_write_and_read_and_no_more(
    chain: Project, account: Account, tmp_path: Path
) -> None:
    account.enforce()
    push = ("--set", "cache.push=true")
    writer = on_another_machine(chain, tmp_path / "writer")
    done = writer.cli("run", *push, DEPLOY_RUNNER_CACHE_KEY=KEY, **account.writer)
    assert "3 stages: 3 ran" in done.stdout
    assert "the shared cache" not in done.stdout
    written = account.names()
    assert {name.partition("/")[0] for name in written} == {"objects", "records"}  # No lease is left.

    reader = on_another_machine(chain, tmp_path / "reader")
    done = reader.cli("run", **account.reader)
    assert "3 stages: 3 hit" in done.stdout
    assert "the shared cache" not in done.stdout

    reader.write("in.txt", "changed")
    done = reader.cli("run", *push, DEPLOY_RUNNER_CACHE_KEY=KEY, **account.reader)
    assert "3 stages: 3 ran" in done.stdout
    assert done.stdout.count("permission is denied") == 1
    assert account.names() == written


def test_the_roles_of_the_docs_are_for_main_and_for_pull_requests() -> None:
    for (trust, _), subject in ((WRITER, "ref:refs/heads/main"), (READER, "pull_request")):
        (statement,) = trust["Statement"]
        claims = statement["Condition"]["StringEquals"]
        issuer = statement["Principal"]["Federated"].partition("/")[2]
        assert claims == {f"{issuer}:aud": "sts.amazonaws.com", f"{issuer}:sub": f"{REPOSITORY}:{subject}"}


def test_the_policy_of_the_bucket_denies_what_the_roles_must_not_do(account: Account) -> None:
    """The local AWS takes the policy but knows no conditions, so that these are compared here."""
    account.client("s3").put_bucket_policy(Bucket="your-cache", Policy=json.dumps(POLICY))
    tls, writes = POLICY["Statement"]
    assert tls["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    roles = [f"arn:aws:iam::123456789012:role/{name}" for name in ("cache-writer", "cache-admin")]
    assert writes["Condition"] == {"ArnNotEquals": {"aws:PrincipalArn": roles}}
    assert {statement["Effect"] for statement in POLICY["Statement"]} == {"Deny"}


def test_the_reader_of_the_docs_has_no_right_that_the_writer_lacks() -> None:
    def actions(policy: dict[str, Any]) -> set[str]:
        found = (statement["Action"] for statement in policy["Statement"])
        return {name for names in found for name in ([names] if isinstance(names, str) else names)}

    assert actions(READER[1]) == {"s3:GetObject", "s3:ListBucket"}
    assert actions(READER[1]) < actions(WRITER[1])


def test_all_json_of_the_page_is_checked_here() -> None:
    assert PAGE.count("```json") == len([*WRITER, *READER, POLICY, LIFECYCLE])


def test_the_caches_of_the_page_are_valid() -> None:
    fragments = [
        t for t in re.findall(r"```yaml-fragment\n(.*?)```", PAGE, re.DOTALL) if "cache:" in t.split()
    ]
    assert len(fragments) == 2
    for text in fragments:
        CacheSpec.model_validate(yaml.safe_load(textwrap.dedent(text))["cache"])


def test_the_settings_of_the_page_are_those_of_the_pipeline() -> None:
    (table,) = re.findall(r"^\| setting \|.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`)? ?\|", table, re.MULTILINE)
    defaults = {name: field.default for name, field in CacheSpec.model_fields.items()}
    assert {n: json.loads(t) if t.startswith(("[", "f", "t")) else t for n, t in rows} == defaults
