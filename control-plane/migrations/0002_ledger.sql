-- What nodes reported, and the money in it. The columns follow the rules of 0001.

-- One row per journal of a node: how far its records are in the tables below. `applied_seq` moves only
-- in the transaction that applies the records.
CREATE TABLE spools (
    node_id TEXT NOT NULL,
    -- 32 hex digits.
    incarnation TEXT NOT NULL,
    -- Grows with every stream that opens it; an older stream must not write.
    session BIGINT NOT NULL,
    applied_seq BIGINT NOT NULL,
    -- 64 hex digits: chain value after applied_seq.
    chain TEXT NOT NULL,
    -- Why nothing more is taken from it, or ''.
    quarantined TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (node_id, incarnation)
);

-- Records that a node no longer holds and that never arrived: the database was restored from a backup.
CREATE TABLE usage_gaps (
    node_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    from_seq BIGINT NOT NULL,
    to_seq BIGINT NOT NULL,
    noted_at_ms BIGINT NOT NULL,
    PRIMARY KEY (node_id, incarnation, from_seq)
);

-- Records that were refused one by one: kept as they came, without any effect.
CREATE TABLE usage_refused (
    node_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    seq BIGINT NOT NULL,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    -- Base64 of the encoded record.
    record TEXT NOT NULL,
    noted_at_ms BIGINT NOT NULL,
    PRIMARY KEY (node_id, incarnation, seq)
);

CREATE TABLE usage_records (
    request_id TEXT PRIMARY KEY,
    node_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    seq BIGINT NOT NULL,
    workspace_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    api_key_id TEXT NOT NULL,
    identity TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    vendor TEXT NOT NULL,
    model TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    credential_owner TEXT NOT NULL,
    router TEXT NOT NULL,
    policy TEXT NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    code TEXT NOT NULL,
    stream BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    fallback_level BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    started_at_ms BIGINT NOT NULL,
    total_us BIGINT NOT NULL,
    upstream_us BIGINT NOT NULL,
    first_byte_us BIGINT NOT NULL,
    input BIGINT NOT NULL,
    cache_read BIGINT NOT NULL,
    cache_write_5m BIGINT NOT NULL,
    cache_write_1h BIGINT NOT NULL,
    output BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    audio_input BIGINT NOT NULL,
    audio_output BIGINT NOT NULL,
    -- The provider did not report; the tokens are the node's count.
    estimated BIGINT NOT NULL,
    -- Tokens were used and no price is known for them. Never means free.
    unpriced BIGINT NOT NULL,
    price_id TEXT NOT NULL,
    -- From tokens and price, computed here.
    cost_nanos BIGINT NOT NULL,
    -- What the node computed.
    reported_cost_nanos BIGINT NOT NULL,
    service_tier TEXT NOT NULL,
    region TEXT NOT NULL,
    applied_at_ms BIGINT NOT NULL
);
CREATE INDEX usage_records_recent ON usage_records (workspace_id, started_at_ms, request_id);

-- Sums per minute and combination of names. usage_records summed up gives the same rows.
CREATE TABLE usage_minutes (
    minute_ms BIGINT NOT NULL,
    workspace_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    api_key_id TEXT NOT NULL,
    identity TEXT NOT NULL,
    provider TEXT NOT NULL,
    vendor TEXT NOT NULL,
    model TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    credential_owner TEXT NOT NULL,
    router TEXT NOT NULL,
    policy TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    -- '2xx', '4xx', '5xx', ...; 'none' when no status was sent.
    status_class TEXT NOT NULL,
    requests BIGINT NOT NULL,
    -- Of these, not completed.
    errors BIGINT NOT NULL,
    estimated BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    input BIGINT NOT NULL,
    cache_read BIGINT NOT NULL,
    cache_write_5m BIGINT NOT NULL,
    cache_write_1h BIGINT NOT NULL,
    output BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    audio_input BIGINT NOT NULL,
    audio_output BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    total_us BIGINT NOT NULL,
    upstream_us BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, minute_ms, project_id, api_key_id, identity, provider, vendor, model,
        credential_id, credential_owner, router, policy, endpoint, status_class)
);
CREATE INDEX usage_minutes_time ON usage_minutes (minute_ms);

-- Every price row that was ever published, so that any record can be priced again.
CREATE TABLE price_versions (
    id TEXT PRIMARY KEY,
    doc TEXT NOT NULL
);

-- Double entry. Entries are written first, then their transaction: its trigger finds them all and
-- refuses unless they sum to zero; the foreign key, checked at commit, refuses entries without one.
CREATE TABLE transactions (
    id TEXT PRIMARY KEY,
    -- What happened, in one name: doing it twice is refused.
    idem TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);
CREATE TABLE entries (
    tx TEXT NOT NULL REFERENCES transactions (id) DEFERRABLE INITIALLY DEFERRED,
    n BIGINT NOT NULL,
    account TEXT NOT NULL,
    amount_nanos BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (tx, n)
);
CREATE INDEX entries_account ON entries (account);
