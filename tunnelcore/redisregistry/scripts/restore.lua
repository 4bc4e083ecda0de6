-- restore writes again what a live tunnel holds, after Redis has lost data. Where the
-- record is there it may be one of before the ports were leased: those that it
-- lacks are added, and those that it has besides are left to their next change.
-- KEYS: device:{DEVICE}
-- ARGV: gen, tunnel, instance, node, epoch, label, live_ms, tail_ms, ports,
--       window_ms, token, commit (as in claim)
-- Reply: ok; or lost: a newer tunnel was here, or this one was released; or label:
-- reserve it, and call again with the token as commit.
local key = KEYS[1]
local mine, tunnel, label = tonumber(ARGV[1]), ARGV[2], ARGV[6]
local live, tail, window = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[10])
local token, commit = ARGV[11], ARGV[12]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local r = redis.call('HMGET', key, 'label', 'until_ms', 'gen', 'tunnel', 'pend', 'pend_label', 'pend_ms',
    'rests', 'ports')
local gen = tonumber(r[3] or 0)
if gen > mine or (gen == mine and r[4] ~= tunnel) then
    return 'lost'
end
-- What rests goes on resting, unless it is leased again.
local leased, rests, ports = {}, {}, {}
for port, public in ARGV[9]:gmatch('(%d+)=(%d+)') do
    leased[public] = true
    ports[tonumber(port)] = public
end
for entry, public in (r[8] or ''):gmatch('(%d+=(%d+)=%d+)') do
    if not leased[public] then
        rests[#rests + 1] = entry
    end
end
rests = table.concat(rests, ',')
if gen == mine and r[1] == label and tonumber(r[2]) > now then -- nothing was lost, but maybe ports
    for port, public in (r[9] or ''):gmatch('(%d+)=(%d+)') do
        ports[tonumber(port)] = ports[tonumber(port)] or public
    end
    local order, list = {}, {}
    for port in pairs(ports) do
        order[#order + 1] = port
    end
    table.sort(order)
    for i, port in ipairs(order) do
        list[i] = string.format('%d=%s', port, ports[port])
    end
    list = table.concat(list, ',')
    if list ~= (r[9] or '') then
        redis.call('HSET', key, 'ports', list)
        if rests ~= '' then
            redis.call('HSET', key, 'rests', rests)
        else
            redis.call('HDEL', key, 'rests')
        end
    end
    redis.call('HSET', key, 'until_ms', now + live, 'seen_ms', now)
    redis.call('PEXPIRE', key, live + tail)
    return 'ok'
end
if commit == '' or r[5] ~= commit or r[6] ~= label or tonumber(r[7]) <= now then
    redis.call('HSET', key, 'pend', token, 'pend_label', label, 'pend_ms', now + window)
    if redis.call('PTTL', key) < window then
        redis.call('PEXPIRE', key, window)
    end
    return 'label'
end
redis.call('DEL', key)
redis.call('HSET', key, 'label', label, 'gen', ARGV[1], 'node', ARGV[4], 'epoch', ARGV[5], 'tunnel', tunnel,
    'instance', ARGV[3], 'until_ms', now + live, 'seen_ms', now)
if ARGV[9] ~= '' then
    redis.call('HSET', key, 'ports', ARGV[9])
end
if rests ~= '' then
    redis.call('HSET', key, 'rests', rests)
end
redis.call('PEXPIRE', key, live + tail)
return 'ok'
