-- The counters: every fact is "device d reached stage s of message m", kept as a bitmap of device numbers.

-- migrate:up

-- What the aggregator inserts; nothing is stored here, the materialized views below fan it out.
CREATE TABLE IF NOT EXISTS ingest (
    app UInt32,
    msg_id String,
    kind LowCardinality(String),
    platform LowCardinality(String),
    channel LowCardinality(String),
    stage LowCardinality(String),
    hour DateTime('UTC'),
    seen Bool,
    devices Array(UInt32),
    last DateTime('UTC')
) ENGINE = Null;

-- Who reached which stage of a message, by the app-local hour it happened in; `last` is the retention clock.
-- No TTL: it would remove old parts of messages that are still alive. `reportsvc` sweeps dead messages itself.
CREATE TABLE IF NOT EXISTS delivery (
    app UInt32,
    msg_id String,
    kind LowCardinality(String),
    platform LowCardinality(String),
    channel LowCardinality(String),
    stage LowCardinality(String),
    hour DateTime('UTC'),
    devices AggregateFunction(groupBitmap, UInt32),
    last SimpleAggregateFunction(max, DateTime('UTC'))
) ENGINE = AggregatingMergeTree
ORDER BY (app, msg_id, kind, platform, channel, stage, hour);

-- Which devices were online or active in an app-local hour. A row stands for its hour alone, so a TTL is exact here;
-- 100 days leave room around the 60 days that may be asked for.
CREATE TABLE IF NOT EXISTS activity (
    app UInt32,
    measure LowCardinality(String),
    hour DateTime('UTC'),
    devices AggregateFunction(groupBitmap, UInt32)
) ENGINE = AggregatingMergeTree
ORDER BY (app, measure, hour)
TTL hour + INTERVAL 100 DAY;

-- Every number ever given to a device of an app: the registry's durable copy. Each column only grows (or, first_seen,
-- only shrinks), so rows may arrive twice and in any order. `platform_rank` is model.platform_rank.
CREATE TABLE IF NOT EXISTS devices (
    app UInt32,
    number UInt32,
    device_id SimpleAggregateFunction(max, String),
    platform_rank SimpleAggregateFunction(max, UInt8),
    first_seen SimpleAggregateFunction(min, DateTime('UTC')),
    registered_at SimpleAggregateFunction(max, DateTime('UTC')),
    deleted_at SimpleAggregateFunction(max, DateTime('UTC')),
    INDEX by_first_seen first_seen TYPE minmax GRANULARITY 1
) ENGINE = AggregatingMergeTree
ORDER BY (app, number);

-- Which devices are known to be of which platform, as bitmaps, for events that name no platform.
CREATE TABLE IF NOT EXISTS device_platforms (
    app UInt32,
    platform_rank UInt8,
    devices AggregateFunction(groupBitmap, UInt32)
) ENGINE = AggregatingMergeTree
ORDER BY (app, platform_rank);

-- The user of a device, as last told.
CREATE TABLE IF NOT EXISTS device_users (
    app UInt32,
    number UInt32,
    user_id String,
    told_at DateTime('UTC')
) ENGINE = ReplacingMergeTree(told_at)
ORDER BY (app, number);

-- What was sent, to whom, and when it expires.
CREATE TABLE IF NOT EXISTS pushes (
    app UInt32,
    msg_id String,
    record String,
    expires_at DateTime('UTC'),
    registered_at DateTime('UTC')
) ENGINE = ReplacingMergeTree(registered_at)
ORDER BY (app, msg_id);

-- The apps' durable copy: their settings and the digests of their keys.
CREATE TABLE IF NOT EXISTS apps (
    app UInt32,
    record String,
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY app;

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_delivery TO delivery AS
SELECT app, msg_id, kind, platform, channel, stage, hour,
       groupBitmapArrayState(devices) AS devices, max(last) AS last
FROM ingest
WHERE msg_id != ''
GROUP BY app, msg_id, kind, platform, channel, stage, hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_online TO activity AS
SELECT app, 'online' AS measure, hour, groupBitmapArrayState(devices) AS devices
FROM ingest
WHERE seen
GROUP BY app, measure, hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_active TO activity AS
SELECT app, 'active' AS measure, hour, groupBitmapArrayState(devices) AS devices
FROM ingest
WHERE seen AND stage IN ('click', 'active')
GROUP BY app, measure, hour;

CREATE MATERIALIZED VIEW IF NOT EXISTS devices_to_platforms TO device_platforms AS
SELECT app, platform_rank, groupBitmapState(number) AS devices
FROM devices
WHERE platform_rank > 0
GROUP BY app, platform_rank;

-- migrate:down

DROP VIEW IF EXISTS devices_to_platforms;
DROP VIEW IF EXISTS ingest_to_active;
DROP VIEW IF EXISTS ingest_to_online;
DROP VIEW IF EXISTS ingest_to_delivery;
DROP TABLE IF EXISTS apps;
DROP TABLE IF EXISTS pushes;
DROP TABLE IF EXISTS device_users;
DROP TABLE IF EXISTS device_platforms;
DROP TABLE IF EXISTS devices;
DROP TABLE IF EXISTS activity;
DROP TABLE IF EXISTS delivery;
DROP TABLE IF EXISTS ingest;
