local stub = require "spec.stub"


describe("redis", function()
    local clock, logged, redis, state, sent, text

    before_each(function()
        clock, logged = stub.install()
        redis = require "iottunnel.redis"
        state, sent = stub.dictionary(clock), {}
        ngx.socket = { tcp = function() return stub.socket(text, sent) end }
        redis.init({ prefix = "iottunnel:", redis_timeout_ms = 500,
            redis_connections = 2, servers = {
            { host = "a", port = 1, name = "a:1", pool = "a" },
        } }, state)
    end)

    it("sends each word with its length", function()
        assert.are.equal("*2\r\n$4\r\nHGET\r\n$10\r\na\r\nDEL b\r\n\r\n",
            redis.encode { { "HGET", "a\r\nDEL b\r\n" } })
        assert.are.equal("*1\r\n$0\r\n\r\n*1\r\n$1\r\n7\r\n",
            redis.encode { { "" }, { 7 } })
    end)

    it("reads every kind of reply", function()
        text = "+OK\r\n:42\r\n$-1\r\n$4\r\na\r\nb\r\n*3\r\n$1\r\nx\r\n$-1\r\n"
            .. "$0\r\n\r\n-ERR no\r\n"
        local replies = assert(redis.exec { { "1" }, { "2" }, { "3" }, { "4" },
            { "5" }, { "6" } })
        assert.are.same({ "OK", 42, false, "a\r\nb", { "x", false, "" },
            { refused = "ERR no" } }, replies)
    end)

    for what, odd in pairs {
        ["nothing"] = "", ["no Redis"] = "HTTP/1.1 400 Bad Request\r\n",
        ["half an answer"] = "$10\r\nabc", ["a length that is none"] = "$x\r\n",
        ["too long a string"] = "$9999999\r\n", ["too long a list"] = "*99999\r\n",
        ["a list of lists of lists"] = "*1\r\n*1\r\n*1\r\n*1\r\n$1\r\nx\r\n",
        ["a server that loads"] = "-LOADING Redis is loading\r\n",
    } do
        it("is away when it answers with " .. what, function()
            text = odd
            assert.is_nil((redis.exec { { "PING" } }))
            assert.is_truthy(logged[1]:find("redis does not answer", 1, true))
        end)
    end

    it("is left alone for a while when it is away, and tried by one", function()
        text = ""
        local tries = 0
        ngx.socket.tcp = function()
            tries = tries + 1
            return stub.socket(text, sent)
        end
        for _ = 1, 3000 do -- 30 s
            redis.exec { { "PING" } }
            clock.now = clock.now + 0.01
        end
        assert.is_true(tries >= 6 and tries <= 25, tries)
        assert.are.equal(1, #logged)
        text = "+PONG\r\n"
        clock.now = clock.now + 6
        assert.is_truthy(redis.exec { { "PING" } })
        assert.is_truthy(redis.exec { { "PING" } })
        assert.is_truthy(logged[2]:find("redis answers again", 1, true))
    end)

    it("may refuse one command and answer others", function()
        text = "-NOPERM this user has no permissions\r\n"
        local replies = assert(redis.exec { { "TIME" } })
        assert.is_truthy(replies[1].refused)
        assert.are.equal(0, #logged)
    end)

    it("goes back to the first server when it answers again", function()
        local dead, asked, timers = { a = true }, {}, {}
        ngx.timer.at = function(_, f)
            timers[#timers + 1] = f
            return true
        end
        ngx.socket.tcp = function()
            local s = stub.socket("+PONG\r\n", sent)
            s.connect = function(_, host)
                asked[#asked + 1] = host
                if dead[host] then
                    return nil, "timeout"
                end
                return 1
            end
            return s
        end
        redis.init({ prefix = "iottunnel:", redis_timeout_ms = 500,
            redis_connections = 2, servers = {
            { host = "a", port = 1, name = "a:1", pool = "a" },
            { host = "b", port = 1, name = "b:1", pool = "b" },
        } }, state)
        local function exec()
            asked = {}
            assert(redis.exec { { "PING" } })
            return table.concat(asked, " ")
        end
        local function tick()
            local due = timers
            timers = {}
            for _, f in ipairs(due) do
                f(false)
            end
            return #due
        end
        assert.are.equal("a b", exec())
        assert.are.equal("b", exec())
        assert.are.equal("b", exec())
        assert.are.equal(1, tick()) -- it is looked at by one, and beside visitors
        assert.are.equal("b", exec())
        dead.a = nil
        assert.are.equal("b", exec())
        clock.now = clock.now + 2
        assert.are.equal("b", exec())
        assert.are.equal(1, tick())
        assert.are.equal("a", exec())
        assert.are.equal(0, tick())
        dead.a = true
        assert.are.equal("a b", exec())
    end)
end)
