-- The internal certificate authority. The key is sealed; the certificate is DER in base64.
CREATE TABLE authority (
    name TEXT PRIMARY KEY,
    certificate TEXT NOT NULL,
    sealed_key TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- Single-use permissions to join.
CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    -- JSON object, given to the node that joins.
    labels TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    -- 0 = not yet.
    used_at_ms BIGINT NOT NULL DEFAULT 0,
    node_id TEXT NOT NULL DEFAULT ''
);

CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    version TEXT NOT NULL,
    labels TEXT NOT NULL,
    joined_at_ms BIGINT NOT NULL,
    last_seen_ms BIGINT NOT NULL,
    -- 0 = it has none: it runs inside the control plane's own process.
    certificate_not_after_ms BIGINT NOT NULL,
    -- 0 = welcome.
    revoked_at_ms BIGINT NOT NULL DEFAULT 0
);

-- What each scope's newest published revision came to: one revision is one content on every replica,
-- and the guard against sudden shrinking knows the state before a restart.
CREATE TABLE published (
    scope TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    state_hash TEXT NOT NULL,
    resources BIGINT NOT NULL,
    api_keys BIGINT NOT NULL,
    bytes BIGINT NOT NULL
);
