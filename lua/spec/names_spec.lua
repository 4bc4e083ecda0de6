local cjson = require "cjson"
local names = require "iottunnel.names"


local function vectors(name)
    local file = assert(io.open("../tunnelcore/names/testdata/" .. name))
    local list = cjson.decode(file:read("*a"))
    file:close()
    return list
end


describe("names", function()
    for _, v in ipairs(vectors("hosts.json")) do
        it("reads a Host: " .. v.name, function()
            local label, port = names.parse(v.input, names.normal(v.domain))
            if v.expected == cjson.null then
                assert.is_nil(label)
            else
                assert.are.same({ v.expected.label, v.expected.port },
                    { label, port })
            end
        end)
    end
    for _, v in ipairs(vectors("devices.json")) do
        it("knows a label: " .. v.name, function()
            assert.are.equal(v.expected, names.valid(v.input))
        end)
    end

    it("brings hosts to their normal form", function()
        for host, want in pairs {
            ["A.Example."] = "a.example", ["a.example:80"] = "a.example",
            ["a.example.:80"] = "a.example", ["a.example:"] = "a.example",
            ["a.example:x"] = "a.example:x",
            ["a.example:80."] = "a.example:80.", ["a.example.."] = "a.example..",
            ["[::1]:80"] = "[::1]", ["[::1]"] = "[::1]", ["::1"] = "::1",
            ["a:1:2"] = "a:1:2", ["\226\132\170:80"] = "\226\132\170",
            ["\255A"] = "\255a", [""] = "", ["."] = "", [":"] = "",
        } do
            assert.are.equal(want, names.normal(host), host)
        end
    end)

    it("tells hosts under the domain from others", function()
        local d = "devices.example"
        assert.is_true(names.directly_under("a--b.Devices.Example:80", d))
        assert.is_false(names.directly_under("x.a.devices.example", d))
        assert.is_false(names.directly_under(".devices.example", d))
        assert.is_false(names.directly_under("", d))
        assert.is_true(names.under("x.a.devices.example.", d))
        assert.is_false(names.under("devices.example", d))
        assert.is_false(names.under("xdevices.example", d))
    end)
end)
