local cjson = require "cjson"
local stub = require "spec.stub"


-- schema is the small deployment that the edge's tests have written.
local function schema()
    local file = assert(io.open("../tunnelcore/redisregistry/testdata/schema.json"))
    local all = cjson.decode(file:read("*a"))
    file:close()
    return all
end


describe("routes", function()
    local clock, data, dictionaries, routes, nodes, reads, away

    -- answer plays Redis on the schema's keys.
    local function answer(command)
        local key = data.keys[command[2]]
        local fields = key and key.fields or {}
        if command[1] == "HMGET" then
            local list = {}
            for i = 3, #command do
                list[i - 2] = fields[command[i]] or false
            end
            reads[#reads + 1] = command[2]
            return list
        elseif command[1] == "ZRANGE" then
            local list = {}
            for id in pairs(fields) do
                list[#list + 1] = id
            end
            return list
        end
        return { tostring(math.floor(clock.now)), "0" } -- TIME
    end

    before_each(function()
        clock = stub.install()
        data, reads, away = schema(), {}, false
        package.loaded["iottunnel.redis"] = { exec = function(commands)
            if away then
                return nil, "away"
            end
            local replies = {}
            for i, command in ipairs(commands) do
                replies[i] = answer(command)
            end
            return replies
        end }
        local config = { prefix = data.prefix, redis_timeout_ms = 500 }
        dictionaries = { routes = stub.dictionary(clock),
            unknown = stub.dictionary(clock), state = stub.dictionary(clock) }
        nodes, routes = require "iottunnel.nodes", require "iottunnel.routes"
        nodes.init(config, dictionaries.state)
        routes.init(config, dictionaries)
    end)

    it("are those of the schema", function()
        for _, started in ipairs { false, true } do
            if started then
                nodes.start()
            end
            for _, want in ipairs(data.routes) do
                local route = routes.find(want.label, true)
                assert.are.equal(want.state == "unknown", route.unknown == true)
                assert.are.equal(want.state == "online", route.online == true)
                assert.are.equal(want.device, route.device)
                if route.online then
                    assert.are.equal(want.node, route.node)
                    assert.are.equal(want.http, route.host .. ":" .. route.port)
                end
            end
        end
    end)

    it("of online devices are read once in two seconds", function()
        nodes.start()
        reads = {}
        for _ = 1, 190 do
            assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online)
            clock.now = clock.now + 0.01
        end
        assert.are.same({ "iottunnel:lease:{aaaaaaaaaaaaaaaa}" }, reads)
        clock.now = clock.now + 0.2
        routes.find("aaaaaaaaaaaaaaaa")
        assert.are.equal("iottunnel:lease:{aaaaaaaaaaaaaaaa}", reads[2])
    end)

    it("that are not there are asked for once a second", function()
        for _ = 1, 90 do
            assert.is_true(routes.find("zzzz").unknown)
            clock.now = clock.now + 0.01
        end
        assert.are.equal(1, #reads)
        data.keys["iottunnel:lease:{zzzz}"] =
            data.keys["iottunnel:lease:{aaaaaaaaaaaaaaaa}"]
        clock.now = clock.now + 0.2
        assert.is_true(routes.find("zzzz").online)
    end)

    it("that were known go on while Redis is away", function()
        routes.find("aaaaaaaaaaaaaaaa")
        routes.find("cccccccccccccccc")
        away = true
        clock.now = clock.now + 600
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online)
        assert.is_nil((routes.find("cccccccccccccccc")))
        assert.is_nil((routes.find("bbbbbbbbbbbbbbbb")))
        routes.forget("aaaaaaaaaaaaaaaa")
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online)
    end)

    it("are read anew when they are forgotten", function()
        routes.find("aaaaaaaaaaaaaaaa")
        local key = data.keys["iottunnel:lease:{aaaaaaaaaaaaaaaa}"]
        key.fields = data.keys["iottunnel:lease:{bbbbbbbbbbbbbbbb}"].fields
        assert.are.equal("edge-1", routes.find("aaaaaaaaaaaaaaaa").node)
        routes.forget("aaaaaaaaaaaaaaaa")
        assert.are.equal("edge-2", routes.find("aaaaaaaaaaaaaaaa").node)
    end)

    it("outlive the data of Redis until the edges have written theirs", function()
        routes.find("aaaaaaaaaaaaaaaa")
        data.keys = {}
        for _ = 1, 12 do
            clock.now = clock.now + 1.1
            assert.are.equal("edge-1", routes.find("aaaaaaaaaaaaaaaa").node)
        end
        assert.is_true(routes.find("bbbbbbbbbbbbbbbb").unknown)
        clock.now = clock.now + 3
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").unknown)
    end)

    it("that a node has denied do not outlive the data of Redis", function()
        routes.find("aaaaaaaaaaaaaaaa")
        data.keys = {}
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa", true).unknown)
    end)

    it("are asked for by hints", function()
        local hints = require "iottunnel.hints"
        routes.find("aaaaaaaaaaaaaaaa")
        local before = #reads
        for _, odd in ipairs { "", "{}", '{"label":"A\\"b"}', '{"label":"x y"}',
            '{"ports":true}', '{"label":"bbbbbbbbbbbbbbbb"}', "[]", "\0" } do
            hints.apply(odd)
        end
        routes.find("aaaaaaaaaaaaaaaa")
        assert.are.equal(before, #reads)
        hints.apply('{"device":"cam-17","label":"aaaaaaaaaaaaaaaa"}')
        routes.find("aaaaaaaaaaaaaaaa")
        assert.is_true(#reads > before)
    end)

    it("of devices whose connection broke are looked at again soon", function()
        local device = data.keys["iottunnel:device:{door-1}"].fields
        device.seen_ms = tostring(clock.now * 1000 - 1000)
        device.why = "connection lost: EOF"
        local route = routes.find("cccccccccccccccc")
        assert.is_true(route.expected)
        assert.are.equal(clock.now - 1, route.seen)
        clock.now = clock.now + 0.3
        local key = data.keys["iottunnel:lease:{cccccccccccccccc}"]
        key.fields = data.keys["iottunnel:lease:{aaaaaaaaaaaaaaaa}"].fields
        assert.is_true(routes.find("cccccccccccccccc").online)
    end)

    it("of devices whose node has died are not looked at soon for ever", function()
        data.keys["iottunnel:node:{edge-1}"] = nil
        local route = routes.find("aaaaaaaaaaaaaaaa")
        assert.is_false(route.online)
        assert.is_true(route.expected)
        clock.now = clock.now + 29
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").expected)
        clock.now = clock.now + 2
        assert.is_false(routes.find("aaaaaaaaaaaaaaaa").expected)
    end)

    it("are looked up for whoever does not ask for many strangers", function()
        local function strangers(name, n)
            local refused = 0
            for i = 1, n do
                if not routes.find(name .. "-" .. i) then
                    refused = refused + 1
                end
            end
            return refused
        end
        ngx.var.binary_remote_addr = "\10\0\0\1"
        assert.are.equal(50, strangers("first", 150))
        assert.is_nil((routes.find("aaaaaaaaaaaaaaaa")))
        ngx.var.binary_remote_addr = "\10\0\0\2"
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online)
        ngx.var.binary_remote_addr = "\10\0\0\1"
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online) -- it is known now
        clock.now = clock.now + 1
        assert.is_true(routes.find("bbbbbbbbbbbbbbbb").online)
        local network = "\32\1\13\184\0\0\0\1"
        for i = 1, 100 do
            ngx.var.binary_remote_addr = network .. ("\0"):rep(7) .. string.char(i)
            assert.are.equal(0, strangers("sixth-" .. i, 1))
        end
        assert.are.equal(1, strangers("seventh", 1))
    end)

    it("are not looked up for ten thousand strangers a second", function()
        local refused = 0
        for i = 1, 10500 do
            ngx.var.binary_remote_addr = "\10\0"
                .. string.char(math.floor(i / 200), i % 200)
            if not routes.find("stranger-" .. i) then
                refused = refused + 1
            end
        end
        assert.are.equal(500, refused)
        assert.is_nil((routes.find("aaaaaaaaaaaaaaaa")))
        clock.now = clock.now + 1
        assert.is_true(routes.find("aaaaaaaaaaaaaaaa").online)
    end)

    it("send agents to the less loaded node, and none to one that drains", function()
        nodes.start()
        for _ = 1, 50 do
            -- edge-2 drains; edge-4 takes as many as come, and has none.
            assert.are.equal("edge-4", nodes.for_agent().id)
        end
        data.keys["iottunnel:node:{edge-4}"] = nil
        clock.now = clock.now + 1
        assert.is_nil(nodes.find("nobody")) -- which has the nodes read
        assert.is_nil(nodes.find("edge-4"))
        assert.are.equal("edge-1", nodes.for_agent().id)
        assert.is_truthy(nodes.find("edge-2"))
        nodes.down("10.0.0.1", 8080)
        assert.are.equal("edge-2", nodes.for_agent().id)
    end)

    it("spread agents that come at once", function()
        for _, id in ipairs { "edge-1", "edge-2", "edge-4" } do
            local f = data.keys["iottunnel:node:{" .. id .. "}"].fields
            f.clients, f.capacity, f.draining = "10", "20000", "0"
        end
        nodes.start()
        local count = {}
        for _ = 1, 3000 do
            local node = nodes.for_agent()
            nodes.gave(node)
            count[node.id] = (count[node.id] or 0) + 1
        end
        for id, n in pairs(count) do
            assert.is_true(n > 980 and n < 1020, id .. " " .. n)
        end
    end)
end)
