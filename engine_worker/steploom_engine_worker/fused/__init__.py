"""The networks as a GPU wants them: the weights and results of diffusers' modules, in fewer passes over memory."""
