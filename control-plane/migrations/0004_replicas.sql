-- Control planes that share this database, and what their nodes can take. Used on PostgreSQL only.
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    -- By the database's clock.
    seen_ms BIGINT NOT NULL,
    max_scope_bytes BIGINT NOT NULL,
    max_resources BIGINT NOT NULL,
    max_resource_bytes BIGINT NOT NULL
);

-- What one replica asks all others about the nodes that are connected to them. Lives for seconds.
CREATE TABLE fleet_questions (
    id TEXT PRIMARY KEY,
    asked_by TEXT NOT NULL,
    asked_ms BIGINT NOT NULL,
    -- JSON.
    question TEXT NOT NULL
);

CREATE TABLE fleet_answers (
    question_id TEXT NOT NULL REFERENCES fleet_questions (id) ON DELETE CASCADE,
    replica_id TEXT NOT NULL,
    -- JSON.
    answer TEXT NOT NULL,
    PRIMARY KEY (question_id, replica_id)
);
