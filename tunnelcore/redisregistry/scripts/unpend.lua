-- unpend takes back a label that claim or restore was about to give.
-- KEYS: device:{DEVICE}
-- ARGV: token
if redis.call('HGET', KEYS[1], 'pend') == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'pend', 'pend_label', 'pend_ms')
end
return 1
