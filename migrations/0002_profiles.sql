-- What devices register of themselves: the durable copy of the profiles and of their interests.

-- migrate:up

-- The profile of a device, one row a device. The row of the largest version is the profile; versions grow with every
-- change. A deleted profile leaves a row without anything in it, so that an older row that comes late stays gone.
-- `gateway` is who takes pushes to it ('' for a device that only a sender knows), `metadata` is JSON, `user_id` signed
-- in on the device, `named_user` was named by a sender. `interests_since`: rows of device_interests of a smaller version
-- are void, because all interests were replaced then.
CREATE TABLE IF NOT EXISTS device_profiles (
    app UInt32,
    number UInt32,
    device_id String,
    gateway LowCardinality(String),
    token String,
    bundle_id LowCardinality(String),
    metadata String,
    user_id String,
    named_user String,
    interests_since UInt64,
    deleted Bool,
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY (app, number);

-- Whether a device has an interest, as of a version of its profile: the row of the largest version says so, unless the
-- profile was deleted or says that all interests were replaced since.
CREATE TABLE IF NOT EXISTS device_interests (
    app UInt32,
    number UInt32,
    interest String,
    subscribed Bool,
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY (app, number, interest);

-- migrate:down

DROP TABLE IF EXISTS device_interests;
DROP TABLE IF EXISTS device_profiles;
