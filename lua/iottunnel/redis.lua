-- Redis, read over nginx's sockets: pipelines on kept connections, a list of
-- servers of which the first that answers is asked, and a breaker that leaves
-- them alone for a while when none does.
--
-- Commands are lists of strings, and travel with their lengths in front:
-- nothing in them can become another command.
local byte, sub = string.byte, string.sub
local concat, floor, min, random = table.concat, math.floor, math.min, math.random
local ipairs, tonumber, tostring, type = ipairs, tonumber, tostring, type

local _M = {}

-- What an answer may hold: enough for the keys of the schema many times over.
local MAX_BULK_BYTES, MAX_ITEMS = 65536, 4096

-- How long servers that do not answer are left alone, in seconds: twice as long
-- with each failure, up to the most, and half of it at random.
local AWAY_FIRST, AWAY_MOST = 0.25, 5

-- How often the first server is looked at, in seconds, while another one is asked:
-- what a replica has may be old.
local BACK = 1

local KEPT_MS = 60000

local config, state -- by init


-- init takes checked settings, and the shared dictionary for what all workers
-- know of the servers.
function _M.init(c, dictionary)
    config, state = c, dictionary
end


-- encode writes commands as Redis reads them.
function _M.encode(commands)
    local out, n = {}, 0
    for _, command in ipairs(commands) do
        n = n + 1
        out[n] = "*" .. #command .. "\r\n"
        for _, word in ipairs(command) do
            word = tostring(word)
            n = n + 1
            out[n] = "$" .. #word .. "\r\n" .. word .. "\r\n"
        end
    end
    return concat(out)
end


-- receive reads one reply: a string, a number, false for null, a list, or
-- {refused = TEXT} for an error that Redis answers. nil and why when the
-- connection is of no more use.
local function receive(sock, depth)
    local line, err = sock:receive("*l")
    if not line then
        return nil, err
    end
    local kind, rest = byte(line), sub(line, 2)
    if kind == 43 then -- +
        return rest
    elseif kind == 45 then -- -
        return { refused = rest }
    end
    local n = tonumber(rest)
    if not n or n ~= floor(n) then
        return nil, "not an answer of Redis"
    end
    if kind == 58 then -- :
        return n
    elseif kind == 36 then -- $
        if n < 0 then
            return false
        elseif n > MAX_BULK_BYTES then
            return nil, "an answer is too large"
        end
        local data
        data, err = sock:receive(n + 2)
        return data and sub(data, 1, n), err
    elseif kind == 42 and depth > 0 then -- *
        if n > MAX_ITEMS then
            return nil, "an answer is too large"
        end
        local list = {}
        for i = 1, n do
            local item
            item, err = receive(sock, depth - 1)
            if item == nil then
                return nil, err
            end
            list[i] = item
        end
        return list
    end
    return nil, "not an answer of Redis"
end
_M.receive = receive


-- exchange sends commands and reads a reply to each.
local function exchange(sock, commands)
    local sent, err = sock:send(_M.encode(commands))
    if not sent then
        return nil, err
    end
    local replies = {}
    for i = 1, #commands do
        local reply
        reply, err = receive(sock, 2)
        if reply == nil then
            return nil, err
        end
        replies[i] = reply
    end
    return replies
end


-- greet says who we are on a new connection.
local function greet(sock, server)
    if server.tls then
        local ok, err = sock:sslhandshake(false,
            config.redis_tls_name or server.host, config.redis_tls_verify)
        if not ok then
            return nil, "TLS: " .. tostring(err)
                .. " (lua_ssl_trusted_certificate in http {} names the CA)"
        end
    end
    local commands = {}
    if server.password then
        commands[1] = server.username
            and { "AUTH", server.username, server.password }
            or { "AUTH", server.password }
    end
    if server.db and server.db ~= 0 then
        commands[#commands + 1] = { "SELECT", server.db }
    end
    if #commands == 0 then
        return true
    end
    local replies, err = exchange(sock, commands)
    if not replies then
        return nil, err
    end
    for i, reply in ipairs(replies) do
        if type(reply) == "table" and reply.refused then
            return nil, commands[i][1] .. ": " .. reply.refused
        end
    end
    return true
end


-- open returns a connection, and whether it has been used before; nil and why.
-- With alone it is a new one that never goes back to the kept ones.
function _M.open(server, alone)
    local sock = ngx.socket.tcp()
    sock:settimeouts(config.redis_timeout_ms, config.redis_timeout_ms,
        config.redis_timeout_ms)
    local options = { pool = alone and server.pool .. ":alone" or server.pool }
    local ok, err
    if server.socket then
        ok, err = sock:connect(server.socket, options)
    else
        ok, err = sock:connect(server.host, server.port, options)
        if not ok and server.address and server.address ~= server.host
            and err and err:find("resol", 1, true) then
            -- No resolver is configured, or it does not know what /etc/hosts
            -- does.
            ok, err = sock:connect(server.address, server.port, options)
        end
    end
    if not ok then
        return nil, "connect: " .. tostring(err)
    end
    local reused = sock:getreusedtimes() or 0
    if reused == 0 then
        ok, err = greet(sock, server)
        if not ok then
            sock:close()
            return nil, err
        end
    end
    return sock, reused > 0
end


-- ask has one server answer commands. A kept connection that has died meanwhile
-- is no failure of the server: another one is tried.
local function ask(server, commands)
    for _ = 1, config.redis_connections + 1 do
        local sock, reused = _M.open(server)
        if not sock then
            return nil, reused
        end
        local replies, err = exchange(sock, commands)
        if replies then
            -- It does not matter where a healthy connection cannot be kept.
            sock:setkeepalive(KEPT_MS, config.redis_connections)
            return replies
        end
        sock:close()
        if not reused or err == "timeout" then
            return nil, err
        end
    end
    return nil, "all kept connections have ended"
end


-- What a server answers to every command, which another one may not.
local UNUSABLE = { LOADING = true, MASTERDOWN = true, NOAUTH = true,
    WRONGPASS = true, CLUSTERDOWN = true, BUSY = true }


-- usable reports whether the server may go on being asked. What it refuses
-- otherwise (NOPERM, MOVED) is for who has asked.
local function usable(replies)
    local first = replies[1]
    if type(first) == "table" and first.refused
        and UNUSABLE[first.refused:match("^%u+") or ""] then
        return nil, first.refused
    end
    return true
end


-- allowed reports whether the servers may be asked now. After a failure nobody
-- asks for a while, and then one request at a time.
local function allowed()
    local failures = state:get("redis:failures")
    if not failures then
        return true
    end
    if state:get("redis:away") then
        return false
    end
    return (state:add("redis:probe", true,
        2 * #config.servers * config.redis_timeout_ms / 1000 + 1))
end


local function failed(reason)
    local failures = state:incr("redis:failures", 1, 0) or 1
    local away = min(AWAY_FIRST * 2 ^ min(failures - 1, 10), AWAY_MOST)
    state:set("redis:away", reason, away * (0.5 + random() / 2))
    state:delete("redis:probe")
    if failures == 1 then
        ngx.log(ngx.ERR, "iottunnel: redis does not answer: ", reason)
    end
end


local function answered()
    if state:get("redis:failures") then
        state:delete("redis:failures")
        state:delete("redis:away")
        state:delete("redis:probe")
        ngx.log(ngx.NOTICE, "iottunnel: redis answers again")
    end
end


-- server returns which of the servers is asked.
function _M.server()
    return state:get("redis:server") or 1
end


-- back has the first server asked again as soon as it answers what visitors ask: one
-- that has lost its master, say, has an answer to a PING.
local function back(premature)
    if premature then
        return
    end
    local replies = ask(config.servers[1],
        { { "HMGET", config.prefix .. "lease:{}", "device" } })
    if replies and usable(replies) then
        state:delete("redis:server")
        ngx.log(ngx.NOTICE, "iottunnel: redis at ", config.servers[1].name,
            " answers again, and is asked")
    end
end


-- exec returns the replies to a pipeline of commands; nil and why when Redis
-- cannot be asked. Replies are as receive has them.
function _M.exec(commands)
    if not allowed() then
        return nil, state:get("redis:away") or "redis is being tried"
    end
    local first, reasons = _M.server(), {}
    if first ~= 1 and state:add("redis:back", true, BACK) then
        -- No visitor waits for it. Where there is no timer, the next one tries.
        ngx.timer.at(0, back)
    end
    for i = 0, #config.servers - 1 do
        local n = (first - 1 + i) % #config.servers + 1
        local replies, err = ask(config.servers[n], commands)
        if replies then
            local ok
            ok, err = usable(replies)
            if ok then
                if i > 0 then
                    ngx.log(ngx.WARN, "iottunnel: redis at ", config.servers[n].name,
                        " is asked: ", concat(reasons, "; "))
                    state:set("redis:server", n)
                end
                answered()
                return replies
            end
        end
        reasons[#reasons + 1] = config.servers[n].name .. ": " .. tostring(err)
    end
    local reason = concat(reasons, "; ")
    failed(reason)
    return nil, reason
end


return _M
