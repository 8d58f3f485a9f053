"""The paths of OpenAI's API that many clients speak. Tiers are its models.

Fields that OpenAI has and that would change the answer are refused by name, others are ignored.

Sources. https://github.com/openai/openai-openapi
"""
