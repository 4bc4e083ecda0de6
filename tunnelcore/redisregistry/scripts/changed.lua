-- changed notes that other public ports are leased than before. It stands before
-- the scripts that lease ports and give them back.
local function changed(version_key, now, channel, hint)
    local version = tonumber(redis.call('GET', version_key) or 0)
    redis.call('SET', version_key, string.format('%.0f', math.max(version + 1, now)))
    redis.pcall('PUBLISH', channel, hint) -- who may not hint changes things all the same
end
