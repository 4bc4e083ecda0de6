-- What the edges publish when a route changes: it is read anew at once, and not
-- when it would have been. Hints may be lost; nothing depends on them.
local names = require "iottunnel.names"
local redis = require "iottunnel.redis"
local routes = require "iottunnel.routes"

local pcall, tostring, type = pcall, tostring, type

local _M = {}

-- One worker listens, and says so this often; another one takes over when it
-- does not for so long, in seconds.
local SAYS, SILENT = 1, 4

-- When to try again, in seconds: after an end, and after a refusal.
local AGAIN, REFUSED = 1, 60

local config, state -- by init
local started = false


function _M.init(c, dictionary)
    config, state = c, dictionary
end


-- apply forgets the label that a message names; whatever else it says is not
-- for routers.
function _M.apply(payload)
    local label = payload:match('"label"%s*:%s*"([^"\\]*)"')
    if label and names.valid(label) then
        routes.forget(label)
    end
end


-- pulse says that this worker listens, and has Redis answer now and then: nothing
-- else would tell that it is gone, or wake the worker up when it is to end, or when
-- another server is asked.
local function pulse(sock, server)
    while not ngx.worker.exiting() and redis.server() == server do
        state:set("hints:listener", ngx.worker.pid(), SILENT)
        if not sock:send(redis.encode { { "PING" } }) then
            return
        end
        ngx.sleep(SAYS)
    end
end


-- hear reads messages until the connection ends, and returns why it did.
local function hear(sock)
    while not ngx.worker.exiting() do
        local reply, err = redis.receive(sock, 2)
        if not reply then
            return err
        elseif reply.refused then
            return reply.refused
        elseif reply[1] == "message" then
            _M.apply(tostring(reply[3]))
        end
    end
    return "exiting"
end


-- listen subscribes and reads until the connection ends, or another server is asked
-- than this one. It returns why it did, and whether it was refused.
local function listen(sock, server)
    local ok, err = sock:send(redis.encode {
        { "SUBSCRIBE", config.prefix .. "hints" },
    })
    if not ok then
        return err
    end
    local reply
    reply, err = redis.receive(sock, 2)
    if type(reply) ~= "table" then
        return err
    elseif reply.refused then
        return reply.refused, true
    end
    sock:settimeouts(SILENT * 1000, SILENT * 1000, SILENT * 1000)
    local thread = ngx.thread.spawn(pulse, sock, server)
    err = hear(sock)
    ngx.thread.kill(thread)
    return err
end


local function once()
    if not state:add("hints:listener", ngx.worker.pid(), SILENT) then
        return -- another worker listens
    end
    local server = redis.server()
    local sock, err = redis.open(config.servers[server], true)
    local refused
    if sock then
        err, refused = listen(sock, server)
        sock:close()
    end
    if refused then
        state:set("hints:listener", 0, REFUSED)
        if state:add("hints:refused", true, 3600) then
            ngx.log(ngx.NOTICE, "iottunnel: redis: no hints of routes that change: ",
                err)
        end
    else
        state:delete("hints:listener")
    end
end


local function tick(premature)
    if premature then
        return
    end
    local ok, err = pcall(once)
    if not ok then
        ngx.log(ngx.ERR, "iottunnel: reading hints: ", err)
    end
    if not ngx.timer.at(AGAIN, tick) then
        started = false -- the next request begins anew
    end
end


-- start has this worker listen, if no other does.
function _M.start()
    if not started then
        started = ngx.timer.at(0, tick) and true or false
    end
end


return _M
