-- A stand-in for what nginx gives to Lua: dictionaries, sockets and time, as far as
-- the modules use them. Nothing here waits.
local _M = {}


-- dictionary is an ngx.shared one whose entries end by the time of clock.
function _M.dictionary(clock)
    local d = { entries = {} }
    local function live(key)
        local e = d.entries[key]
        if e and e.ends and e.ends <= clock.now then
            d.entries[key], e = nil, nil
        end
        return e
    end
    function d.get(_, key)
        local e = live(key)
        return e and e.value
    end
    function d.set(_, key, value, seconds)
        d.entries[key] = { value = value,
            ends = seconds and seconds > 0 and clock.now + seconds }
        return true
    end
    function d.add(self, key, value, seconds)
        if live(key) then
            return false, "exists"
        end
        return self:set(key, value, seconds)
    end
    function d.incr(self, key, by, start, seconds)
        local e = live(key)
        if not e then
            self:set(key, start, seconds)
            e = d.entries[key]
        end
        e.value = e.value + by
        return e.value
    end
    function d.delete(_, key)
        d.entries[key] = nil
    end
    return d
end


-- socket plays a server: it reads what is sent and gives back text.
function _M.socket(text, sent)
    local at, s = 1, {}
    function s.settimeouts() end
    function s.connect() return 1 end
    function s.getreusedtimes() return 0 end
    function s.setkeepalive() return 1 end
    function s.close() return 1 end
    function s.send(_, data)
        sent[#sent + 1] = data
        return #data
    end
    function s.receive(_, what)
        if what == "*l" then
            local line, after = text:match("^(.-)\r\n()", at)
            if not line then
                return nil, "closed"
            end
            at = after
            return line
        end
        if at + what - 1 > #text then
            return nil, "closed"
        end
        local data = text:sub(at, at + what - 1)
        at = at + what
        return data
    end
    return s
end


-- install makes ngx global, with a clock of its own.
function _M.install()
    local clock = { now = 1760000000 }
    local logged = {}
    _G.ngx = {
        ERR = "error", WARN = "warn", NOTICE = "notice", INFO = "info",
        log = function(level, ...)
            logged[#logged + 1] = level .. ": " .. table.concat({ ... })
        end,
        now = function() return clock.now end,
        sleep = function(seconds) clock.now = clock.now + seconds end,
        timer = { at = function() return true end },
        worker = { pid = function() return 1 end },
        var = {},
    }
    package.loaded["ngx.semaphore"] = { new = function()
        return { post = function() end, wait = function() return true end }
    end }
    for _, name in ipairs { "config", "headers", "hints", "hosts", "nodes", "redis",
        "routes" } do
        package.loaded["iottunnel." .. name] = nil
    end
    return clock, logged
end


return _M
