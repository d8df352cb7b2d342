{
  "targets": [
    {
      "target_name": "diad",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt", "scripts/build-native.mjs"],
          "outputs": ["<(PRODUCT_DIR)/diad.node"],
          "action": ["node", "scripts/build-native.mjs", "--libraries-only"]
        }
      ]
    }
  ]
}
