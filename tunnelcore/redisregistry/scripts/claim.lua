-- claim takes a device for a tunnel.
-- KEYS: device:{DEVICE}
-- ARGV: tunnel, instance, node, epoch, live_ms, tail_ms, grace_ms, window_ms,
--       evict_gen, evict_tunnel, dead_gen, dead_tunnel, label, token, commit,
--       rest_ms, not_after_ms (the caller has given up by then)
--
-- Replies:
--   late, now_ms
--       nothing was done
--   ok, gen, label, fresh, until_ms, ports, gen, tunnel, instance, node, epoch
--       granted; the last five are the tunnel that it replaced, empty without one;
--       a repeated call replies the same ones
--   held, gen, tunnel, instance, node, epoch
--       by a tunnel of another instance, whose node the caller has to look at
--   label, label, token
--       the device has no lease: reserve that label, and call again with the
--       token as commit
local key = KEYS[1]
local tunnel, instance, node, epoch = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local live, tail, grace, window = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local evict_gen, evict_tunnel, dead_gen, dead_tunnel = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local candidate, token, commit, rest = ARGV[13], ARGV[14], ARGV[15], tonumber(ARGV[16])

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
if now > tonumber(ARGV[17]) then
    return { 'late', now }
end

local r = redis.call('HMGET', key, 'label', 'until_ms', 'gen', 'tunnel', 'instance', 'node', 'epoch', 'ports',
    'pend', 'pend_label', 'pend_ms', 'rests', 'replaced')
local label, ends, gen = r[1], tonumber(r[2] or 0), r[3]
local old = { '', '', '', '', '' }
local fresh = 0
local gone, set = {}, {} -- fields besides those of each claim
if label and ends > now then
    local repeated = r[4] == tunnel and r[5] == instance and r[6] == node and r[7] == epoch
    if r[4] and not repeated then
        local named = (gen == evict_gen and r[4] == evict_tunnel) or (gen == dead_gen and r[4] == dead_tunnel)
        if r[5] ~= instance and not named then
            return { 'held', gen, r[4], r[5], r[6], r[7] }
        end
        old = { gen, r[4], r[5], r[6], r[7] }
    end
    if repeated and r[13] then
        local by, of = cjson.decode(r[13])[1], cjson.decode(r[13])[2]
        old = by == gen and of or old -- an edge of before this field leaves it as it is
    end
    -- Route and ports were made to last until then, and longer by more than
    -- grace; they are prolonged before the lease is.
    ends = math.min(now + live, math.max(ends, now + grace))
else
    local pending = r[9] and tonumber(r[11]) > now
    if commit == '' or not pending or r[9] ~= commit then
        if not pending then
            r[10], r[9] = candidate, token
            redis.call('HSET', key, 'pend', token, 'pend_label', candidate, 'pend_ms', now + window)
            if redis.call('PTTL', key) < window then
                redis.call('PEXPIRE', key, window)
            end
        end
        return { 'label', r[10], r[9] }
    end
    -- The ports of the lease that has ended rest, from its end on.
    local rests = {}
    for entry, end_ms in (r[12] or ''):gmatch('(%d+=%d+=(%d+))') do
        if tonumber(end_ms) > now then
            rests[#rests + 1] = entry
        end
    end
    if ends + rest > now then
        for entry in (r[8] or ''):gmatch('%d+=%d+') do
            rests[#rests + 1] = string.format('%s=%.0f', entry, ends + rest)
        end
    end
    gone = { 'ports', 'rests' }
    if #rests > 0 then
        gone, set = { 'ports' }, { 'rests', table.concat(rests, ',') }
    end
    fresh, label, r[8], ends = 1, r[10], false, now + live
end

gen = string.format('%.0f', math.max(tonumber(gen or 0) + 1, us))
if old[2] ~= '' then
    set[#set + 1], set[#set + 2] = 'replaced', cjson.encode({ gen, old })
else
    gone[#gone + 1] = 'replaced'
end
redis.call('HSET', key, 'label', label, 'gen', gen, 'node', node, 'epoch', epoch, 'tunnel', tunnel,
    'instance', instance, 'until_ms', ends, 'seen_ms', now, unpack(set))
redis.call('HDEL', key, 'why', 'op', 'pend', 'pend_label', 'pend_ms', unpack(gone))
redis.call('PEXPIRE', key, ends - now + tail)
return { 'ok', gen, label, fresh, ends, r[8] or '', unpack(old) }
