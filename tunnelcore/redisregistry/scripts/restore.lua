-- restore writes again what a live tunnel holds, after Redis has lost data.
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
    'rests')
local gen = tonumber(r[3] or 0)
if gen > mine or (gen == mine and r[4] ~= tunnel) then
    return 'lost'
end
if gen == mine and r[1] == label and tonumber(r[2]) > now then -- nothing was lost
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
-- What rests goes on resting, unless it is leased again.
local leased, rests = {}, {}
for public in ARGV[9]:gmatch('=(%d+)') do
    leased[public] = true
end
for entry, public in (r[8] or ''):gmatch('(%d+=(%d+)=%d+)') do
    if not leased[public] then
        rests[#rests + 1] = entry
    end
end
redis.call('DEL', key)
redis.call('HSET', key, 'label', label, 'gen', ARGV[1], 'node', ARGV[4], 'epoch', ARGV[5], 'tunnel', tunnel,
    'instance', ARGV[3], 'until_ms', now + live, 'seen_ms', now)
if ARGV[9] ~= '' then
    redis.call('HSET', key, 'ports', ARGV[9])
end
if #rests > 0 then
    redis.call('HSET', key, 'rests', table.concat(rests, ','))
end
redis.call('PEXPIRE', key, live + tail)
return 'ok'
