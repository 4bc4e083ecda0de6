-- allocate finds public ports for a device: all that are asked for, or none.
-- KEYS: {ports}, {ports}:device, {ports}:version, {ports}:op:OP (a repeated call
--       finds its outcome)
-- ARGV: device, left_ms (of the lease), rest_ms, first, last, op_ms, channel, hint,
--       then for each port its number, the public port that it has or had last (0: none), and
--       the one that the search for another starts at
-- Reply: for each port, in their order, the public port, the score that was
-- written for it, and the one that was found (0: it was free); nothing when there
-- is no room.
local until_key, owner_key, op_key = KEYS[1], KEYS[2], KEYS[4]
local device = ARGV[1]
local left, rest, first, last = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local size = last - first + 1
local taken, out, found = {}, {}, {}

local done = redis.call('GET', op_key)
if done then
    for port in done:gmatch('%d+') do
        out[#out + 1] = port
    end
    return out
end

-- search returns the first free port from start on, and then from first on.
local function search(start)
    for at = 0, size - 1, 64 do
        local ports = {}
        for i = at, math.min(at + 63, size - 1) do
            ports[#ports + 1] = first + (start - first + i) % size
        end
        local scores = redis.call('ZMSCORE', until_key, unpack(ports))
        for i, port in ipairs(ports) do
            if not taken[port] and tonumber(scores[i] or 0) <= now then
                return port
            end
        end
    end
end

for i = 9, #ARGV, 3 do -- those that it has or had, first: nothing else may take them
    local owner, port = device .. ':' .. ARGV[i], tonumber(ARGV[i + 1])
    if port ~= 0 and not taken[port] then
        local score = tonumber(redis.call('ZSCORE', until_key, port) or 0)
        if score <= now or redis.call('HGET', owner_key, port) == owner then
            taken[port] = owner
            out[(i - 6) / 3] = port
            found[port] = score > now and score or nil
        end
    end
end
for i = 9, #ARGV, 3 do
    local n = (i - 6) / 3
    if not out[n] then
        local port = search(tonumber(ARGV[i + 2]))
        if not port then
            return {}
        end
        taken[port] = device .. ':' .. ARGV[i]
        out[n] = port
    end
end
local reply, new = {}, false
for _, port in ipairs(out) do
    -- Always another score than before, by which leaveports and undoports of others
    -- find out that the port was taken.
    local score = math.max(now + left + rest, (found[port] or 0) + 1)
    new = new or (found[port] or 0) <= now + rest
    redis.call('HSET', owner_key, port, taken[port])
    redis.call('ZADD', until_key, score, port)
    for _, n in ipairs({ port, score, found[port] or 0 }) do
        reply[#reply + 1] = string.format('%.0f', n)
    end
end
redis.call('SET', op_key, table.concat(reply, ' '), 'PX', ARGV[6])
if new then
    changed(KEYS[3], now, ARGV[7], ARGV[8])
end
-- What has rested is forgotten, a few at a time.
for _, port in ipairs(redis.call('ZRANGE', until_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, 32)) do
    redis.call('ZREM', until_key, port)
    redis.call('HDEL', owner_key, port)
end
return reply
