-- When every target of a push had it, for the rebuild of Redis.

-- migrate:up

-- When every target of a push had received it, as far as the aggregator noted; 0 (1970) if it was given targets since
-- who have not. The row of the largest version holds.
CREATE TABLE IF NOT EXISTS completions (
    app UInt32,
    msg_id String,
    finished_at DateTime('UTC'),
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY (app, msg_id);

-- migrate:down

DROP TABLE IF EXISTS completions;
