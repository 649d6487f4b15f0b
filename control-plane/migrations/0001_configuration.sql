-- One text for SQLite and PostgreSQL: only TEXT and BIGINT columns, booleans as 0 and 1, bytes as
-- hex or base64. Where the engines must differ there is a second file with the engine's name.

-- Facts about this database: lineage, version of the catalogue.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- A workspace, or 'shared'. `revision` is advanced by the transaction of every change in it.
CREATE TABLE scopes (
    scope TEXT PRIMARY KEY,
    workspace_key TEXT NOT NULL UNIQUE,
    revision BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    deleted BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX scopes_updated ON scopes (updated_at_ms);

-- Every configuration resource as a document; the types of the documents are compiler::input.
CREATE TABLE objects (
    scope TEXT NOT NULL REFERENCES scopes (scope),
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    -- The object it belongs to (a credential's provider), or ''.
    parent TEXT NOT NULL,
    -- Unique among the living of the same kind and parent: slug, name, or the id itself.
    name TEXT NOT NULL,
    doc TEXT NOT NULL,
    -- Revision of the scope that last changed it: its ETag, and what deltas are made from.
    revision BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    -- A deleted object stays as a mark, so that deltas can name it.
    deleted BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, kind, id)
);
CREATE UNIQUE INDEX objects_name ON objects (scope, kind, parent, name) WHERE deleted = 0;
CREATE INDEX objects_revision ON objects (scope, revision);

-- Every state an object ever had: last good versions for quarantine, history, restore.
CREATE TABLE object_history (
    scope TEXT NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    revision BIGINT NOT NULL,
    doc TEXT NOT NULL,
    deleted BIGINT NOT NULL,
    PRIMARY KEY (scope, kind, id, revision)
);

-- Envelope-encrypted secrets; a new version for every change, referred to by (id, version).
CREATE TABLE secrets (
    id TEXT NOT NULL,
    version BIGINT NOT NULL,
    scope TEXT NOT NULL,
    sealed TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (id, version)
);

-- Who changed what. Append-only; `hash` chains the lines of a scope.
CREATE TABLE audit (
    change_id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    revision BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    kind TEXT NOT NULL,
    object_id TEXT NOT NULL,
    before TEXT,
    after TEXT,
    hash TEXT NOT NULL,
    UNIQUE (scope, revision)
);

-- What is to be published, written with the change.
CREATE TABLE outbox (
    scope TEXT NOT NULL,
    revision BIGINT NOT NULL,
    change_id TEXT NOT NULL UNIQUE,
    committed_at_ms BIGINT NOT NULL,
    -- An operator confirmed that it shrinks or grows past the guard.
    force BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (scope, revision)
);

-- Stored answers of requests that carried an Idempotency-Key. status 0 = in progress.
CREATE TABLE idempotency (
    principal TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    status BIGINT NOT NULL,
    headers TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (principal, key)
);

CREATE TABLE admin_tokens (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    -- '' = every workspace.
    scope TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    -- 0 = never.
    expires_at_ms BIGINT NOT NULL,
    disabled BIGINT NOT NULL DEFAULT 0
);
