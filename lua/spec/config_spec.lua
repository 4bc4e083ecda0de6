local check = require("iottunnel.config").check


local function with(options)
    options.domain = options.domain or "devices.example"
    return check(options)
end


describe("setup", function()
    it("reads addresses of Redis", function()
        for url, want in pairs {
            ["redis://127.0.0.1"] = { host = "127.0.0.1", port = 6379 },
            ["redis://redis:7000/3"] = { host = "redis", port = 7000, db = 3 },
            ["redis://[::1]:7000"] = { host = "[::1]", port = 7000 },
            ["redis://[::1]"] = { host = "[::1]", port = 6379 },
            ["rediss://u:p%40%3a%2F@r.example:1"] = { host = "r.example", port = 1,
                tls = true, username = "u", password = "p@:/" },
            ["redis://:p@q@r"] = { host = "r", port = 6379, password = "p@q" },
            ["unix:///run/redis.sock"] = { socket = "unix:/run/redis.sock" },
            ["unix://u:p@/run/r.sock?db=2"] = { socket = "unix:/run/r.sock", db = 2,
                username = "u", password = "p" },
        } do
            local s = with { redis = url }.servers[1]
            for _, key in ipairs { "host", "port", "socket", "db", "username",
                "password" } do
                assert.are.equal(want[key], s[key], url .. " " .. key)
            end
            assert.are.equal(want.tls or false, s.tls or false, url)
        end
    end)

    it("has a default for everything but redis and domain", function()
        local c = with { redis = "redis://r", domain = "Devices.Example." }
        assert.are.equal("devices.example", c.domain)
        assert.are.equal("iottunnel:", c.prefix)
        assert.are.equal(5, c.wait_s)
        assert.is_true(c.redis_tls_verify)
    end)

    for says, options in pairs {
        ["setup: domain: "] = { redis = "redis://r", domain = "*.devices.example" },
        ["setup: redis: an address is missing"] = {},
        ["setup: redis: an address begins with"] = { redis = "http://r" },
        ["setup: redis: an address is"] = { redis = "redis://a b" },
        ["setup: redis: a socket is"] = { redis = "unix://run/redis" },
        ["setup: redis: the list"] = { redis = {} },
        ["setup: redis: a number"] = { redis = 6379 },
        ["setup: wait: there is no such setting"] = { redis = "redis://r", wait = 5 },
        ["setup: wait_s: from"] = { redis = "redis://r", wait_s = -1 },
        ["setup: redis_timeout_ms: from"] = { redis = "redis://r",
            redis_timeout_ms = 0 },
        ["setup: password_file: password"] = { redis = "redis://r", password = "x",
            password_file = "y" },
        ["setup: password_file: /nowhere"] = { redis = "redis://r",
            password_file = "/nowhere" },
        ["setup: username: "] = { redis = "redis://r", username = "x" },
    } do
        it("refuses what can never work: " .. says, function()
            local ok, why = pcall(with, options)
            assert.is_false(ok)
            assert.is_truthy(why:find(says, 1, true), why)
        end)
    end
end)
