-- note adds an event to the journal of a device.
-- KEYS: journal:{DEVICE}
-- ARGV: event (KIND, NODE and DETAIL, with tabs between), 1 if it counts as a
--       connection else 0, how many events are kept, how long in ms, op (new for each
--       batch), and which of the batch it is: a batch that is repeated finds how far it
--       was carried out
-- Reply: 1.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'tags', 'hours', 'events', 'op')
local op, n = string.match(r[4] or '', '^(.*):(%d+)$')
if op == ARGV[5] and tonumber(n) >= tonumber(ARGV[6]) then
    return 1
end
local time = redis.call('TIME')
local hour, hours, last = math.floor(time[1] / 3600), {}, ARGV[2] == '1'
for h, n in string.gmatch(r[2] or '', '(%d+)=(%d+)') do
    if last and tonumber(h) == hour then
        n, last = n + 1, false
    end
    if tonumber(h) > hour - 24 then
        hours[#hours + 1] = string.format('%d=%d', h, n)
    end
end
if last then
    hours[#hours + 1] = string.format('%d=1', hour)
end
local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local events = { ms .. '\t' .. ARGV[1] }
for line in string.gmatch(r[3] or '', '[^\n]+') do
    if #events < tonumber(ARGV[3]) then
        events[#events + 1] = line
    end
end
redis.call('HSET', key, 'hours', table.concat(hours, ','), 'events', table.concat(events, '\n'), 'op', ARGV[5] .. ':' .. ARGV[6])
if not r[1] then
    redis.call('PEXPIRE', key, ARGV[4])
end
return 1
