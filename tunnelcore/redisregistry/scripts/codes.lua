-- codes lists the claim codes that have not expired.
-- KEYS: {codes}, {codes}:code
-- Reply: id, until_ms, "HASH DEVICE CREATED_MS OP" of each; DEVICE is - for any.
local ends, codes = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local list = redis.call('ZRANGE', ends, string.format('(%.0f', now), '+inf', 'BYSCORE', 'WITHSCORES')
local out = {}
for i = 1, #list, 2 do
    local code = redis.call('HGET', codes, list[i])
    if code then
        out[#out + 1] = list[i]
        out[#out + 1] = list[i + 1]
        out[#out + 1] = code
    end
end
return out
