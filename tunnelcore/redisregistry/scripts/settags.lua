-- settags gives a device other tags. With tags its journal does not end.
-- KEYS: journal:{DEVICE}
-- ARGV: tags, separated by commas; how long a journal without tags is kept, in ms
-- Reply: 1.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'hours', 'events', 'op')
redis.call('DEL', key) -- and with it the time when it ends
local left = {}
for i, field in ipairs({ 'hours', 'events', 'op' }) do
    if r[i] then
        left[#left + 1] = field
        left[#left + 1] = r[i]
    end
end
if ARGV[1] ~= '' then
    left[#left + 1] = 'tags'
    left[#left + 1] = ARGV[1]
end
if #left > 0 then
    redis.call('HSET', key, unpack(left))
    if ARGV[1] == '' then
        redis.call('PEXPIRE', key, ARGV[2])
    end
end
return 1
