-- takecode removes a claim code: of several calls one gets it.
-- KEYS: {codes}, {codes}:code, {codes}:op:OP
-- ARGV: id, hash (empty: whatever it is), device that is to use it, op_ms, which
--       (own: only a code made for this device; any: also one of no device)
-- Reply: 1 done, 0 there is no such code for that device.
local ends, codes, op = KEYS[1], KEYS[2], KEYS[3]
local id = ARGV[1]
if redis.call('GET', op) then
    return 1 -- a repeated call
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local code = redis.call('HGET', codes, id)
if not code or tonumber(redis.call('ZSCORE', ends, id) or 0) <= now then
    return 0
end
local hash, device = string.match(code, '^(%S+) (%S+) ')
local may = device == ARGV[3] or device == '-' and ARGV[5] == 'any'
if ARGV[2] ~= '' and not (hash == ARGV[2] and may) then
    return 0
end
redis.call('HDEL', codes, id)
redis.call('ZREM', ends, id)
redis.call('SET', op, '1', 'PX', ARGV[4])
return 1
