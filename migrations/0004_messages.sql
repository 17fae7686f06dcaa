-- One row a message, so that the newest ones are found without reading the counters.

-- migrate:up

-- When a message was first heard of and last delivered, and when its push was made and expires, whichever of them are
-- known; the rows of a message may come in any order and more than once. It is only for finding messages: what is told
-- of one comes from `delivery` and `pushes`. `first_hour` is the largest DateTime in the row of a push.
CREATE TABLE IF NOT EXISTS messages (
    app UInt32,
    msg_id String,
    first_hour SimpleAggregateFunction(min, DateTime('UTC')),
    last SimpleAggregateFunction(max, DateTime('UTC')),
    created_at SimpleAggregateFunction(max, DateTime('UTC')),
    expires_at SimpleAggregateFunction(max, DateTime('UTC'))
) ENGINE = AggregatingMergeTree
ORDER BY (app, msg_id)
-- A page of the list looks some hundred messages up, whose ids are anywhere.
SETTINGS index_granularity = 512;

CREATE MATERIALIZED VIEW IF NOT EXISTS delivery_to_messages TO messages AS
SELECT app, msg_id, min(hour) AS first_hour, max(last) AS last,
       toDateTime(0, 'UTC') AS created_at, toDateTime(0, 'UTC') AS expires_at
FROM delivery
GROUP BY app, msg_id;

-- A registration counts as a delivery: it too keeps a message for a month.
CREATE MATERIALIZED VIEW IF NOT EXISTS pushes_to_messages TO messages AS
SELECT app, msg_id, toDateTime(4294967295, 'UTC') AS first_hour, registered_at AS last,
       toDateTime(least(JSONExtractUInt(record, 'created_at'), 4294967295), 'UTC') AS created_at, expires_at
FROM pushes;

-- What is there already; a row that comes twice changes nothing.
INSERT INTO messages (app, msg_id, first_hour, last, created_at, expires_at)
SELECT app, msg_id, min(hour), max(last), toDateTime(0, 'UTC'), toDateTime(0, 'UTC')
FROM delivery
GROUP BY app, msg_id;

INSERT INTO messages (app, msg_id, first_hour, last, created_at, expires_at)
SELECT app, msg_id, toDateTime(4294967295, 'UTC'), registered_at,
       toDateTime(least(JSONExtractUInt(record, 'created_at'), 4294967295), 'UTC'), expires_at
FROM pushes;

-- migrate:down

DROP VIEW IF EXISTS pushes_to_messages;
DROP VIEW IF EXISTS delivery_to_messages;
DROP TABLE IF EXISTS messages;
